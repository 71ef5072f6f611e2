package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/agent/localuser"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

// askTimeout bounds how long a local program may take to say what it wants.
const askTimeout = 10 * time.Second

// face is one loopback listener. serve runs for each connection that belongs
// to the agent's user; it owns the connection. A face of datagrams has packets
// in its place, which runs until pc is closed.
type face struct {
	name, addr string
	serve      func(ctx context.Context, c net.Conn)
	packets    func(ctx context.Context, pc *net.UDPConn)
	l          net.Listener
	pc         *net.UDPConn
}

// newFaces lists the faces of the configuration; none listens yet.
func (a *Agent) newFaces() []*face {
	var fs []*face
	for _, addr := range a.cfg.SOCKS5 {
		fs = append(fs, &face{name: "socks5", addr: addr, serve: a.serveSOCKS})
	}
	for _, addr := range a.cfg.HTTPConnect {
		fs = append(fs, &face{name: "http_connect", addr: addr, serve: a.serveConnect})
	}
	for _, f := range a.cfg.Forwards {
		if f.network() == "udp" {
			fs = append(fs, &face{name: "forward", addr: f.Listen, packets: func(ctx context.Context, pc *net.UDPConn) { a.forwardDatagrams(ctx, pc, f) }})
			continue
		}
		fs = append(fs, &face{name: "forward", addr: f.Listen, serve: func(ctx context.Context, c net.Conn) { a.serveForward(ctx, c, f) }})
	}
	if r := a.cfg.Resolver; r != "" {
		fs = append(fs, &face{name: "resolver", addr: r, packets: a.resolveDatagrams}, &face{name: "resolver", addr: r, serve: a.serveResolver})
	}
	return fs
}

// listen opens every face. On an error none stays open.
func (a *Agent) listen() error {
	for _, f := range a.faces {
		var err error
		if f.packets != nil {
			if err = f.listenPackets(); err == nil {
				a.addBound(f.name, f.pc.LocalAddr())
				continue
			}
		}
		var l net.Listener
		if err == nil {
			l, err = net.Listen("tcp", f.addr)
		}
		if err != nil {
			a.closeFaces()
			return fmt.Errorf("listen on %s face %s: %w", f.name, f.addr, err)
		}
		f.l = l
		a.addBound(f.name, l.Addr())
	}
	return nil
}

func (f *face) listenPackets() error {
	at, err := net.ResolveUDPAddr("udp", f.addr)
	if err != nil {
		return err
	}
	f.pc, err = net.ListenUDP("udp", at)
	return err
}

func (a *Agent) addBound(kind string, addr net.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bound = append(slices.Clone(a.bound), FaceStatus{Kind: kind, Addr: addr.String()})
}

func (a *Agent) closeFaces() {
	for _, f := range a.faces {
		if f.l != nil {
			f.l.Close()
		}
		if f.pc != nil {
			f.pc.Close()
		}
	}
}

// run accepts until ctx ends and returns after every connection has ended.
func (f *face) run(ctx context.Context, a *Agent) error {
	if f.packets != nil {
		stop := context.AfterFunc(ctx, func() { f.pc.Close() })
		defer stop()
		f.packets(ctx, f.pc)
		return nil
	}
	stop := context.AfterFunc(ctx, func() { f.l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := f.l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var ne net.Error
			if !errors.As(err, &ne) {
				return fmt.Errorf("accept on %s face: %w", f.name, err)
			}
			// Out of descriptors, most likely: let some connections end.
			a.log.Warn("accept failed", zap.String("face", f.name), zap.Error(err))
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		select {
		case a.slots <- struct{}{}:
		default:
			a.count(&a.overLimit)
			reset(c)
			continue
		}
		wg.Go(func() {
			defer func() { <-a.slots }()
			stop := context.AfterFunc(ctx, func() { reset(c) })
			defer stop()
			defer c.Close()
			if a.admit(f.name, c) {
				f.serve(ctx, c)
			}
		})
	}
}

// admit reports whether c comes from the user who runs the agent. Nothing is
// read from a stranger and nothing is said to it.
func (a *Agent) admit(faceName string, c net.Conn) bool {
	uid, err := a.peer(c)
	if errors.Is(err, localuser.ErrUnsupported) && a.cfg.TrustLocalUsers {
		return true
	}
	if err == nil && uid == a.uid {
		return true
	}
	a.count(&a.strangers)
	reset(c)
	a.log.Warn("local connection refused", zap.String("face", faceName), zap.Stringer("remote_addr", c.RemoteAddr()),
		zap.Uint32("uid", uid), zap.Stringer("reason", reason.LocalUser), zap.Error(err))
	if err == nil {
		a.raise(alert.Alert{Code: alert.AccessRefused, Reason: reason.LocalUser, Detail: fmt.Sprintf("local uid %d at the %s face", uid, faceName)})
	}
	return false
}

// refused records that a destination was refused, and says so in the log.
func (a *Agent) refused(faceName string, c interface{ RemoteAddr() net.Addr }, to string, err error) (reason.Reason, Words) {
	r, w := explainError(err)
	app := ""
	if rs := a.currentRoutes(); rs != nil {
		app = rs.appAt(to)
	}
	a.count(&a.denied)
	a.log.Warn("destination refused", zap.String("face", faceName), zap.Stringer("remote_addr", c.RemoteAddr()), zap.String("destination", to),
		zap.String("app_id", app), zap.Stringer("reason", r), zap.Error(err))
	a.notices.add(Notice{Time: a.cfg.Now(), Kind: "refused", Level: 1, AppID: app, Target: to, Reason: r.Code(), Words: w})
	if r > 200 && r < 400 && r != reason.LoginRequired {
		a.hint(5 * time.Second)
	}
	return r, w
}

// serveForward carries a connection of a port forward.
func (a *Agent) serveForward(ctx context.Context, c net.Conn, fw Forward) {
	f, err := a.open(ctx, c, func(t *routes) (*Resource, reason.Reason) { return t.forward(fw) })
	if err != nil {
		a.refused("forward", c, fw.App, err)
		reset(c) // no protocol in which to say why: a reset, not an empty answer
		return
	}
	a.relay(f, c)
}

func (a *Agent) count(n *uint64) {
	a.mu.Lock()
	*n++
	a.mu.Unlock()
}

// target makes a Target of what a proxy protocol gave.
func target(network, name string, addr netip.Addr, port uint16) Target {
	return Target{Network: network, Name: name, Addr: addr, Port: port}
}
