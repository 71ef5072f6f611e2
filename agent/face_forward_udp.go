package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/agent/localuser"
	"github.com/yumen-zt/yumen/internal/reason"
)

// udpForward is a local datagram socket whose every sender has a flow of its
// own to one application. The flow ends when the gateway finds it idle, or with
// its right; the sender's next datagram opens another.
type udpForward struct {
	a     *Agent
	fw    Forward
	pc    *net.UDPConn
	local netip.AddrPort
	wg    sync.WaitGroup
	ways  map[netip.AddrPort]*way // of run alone; at most maxAssociations
}

func (a *Agent) forwardDatagrams(ctx context.Context, pc *net.UDPConn, fw Forward) {
	u := &udpForward{a: a, fw: fw, pc: pc, local: pc.LocalAddr().(*net.UDPAddr).AddrPort(), ways: map[netip.AddrPort]*way{}}
	ctx, cancel := context.WithCancel(ctx)
	defer u.wg.Wait()
	defer cancel()
	buf := make([]byte, 65535)
	for {
		n, from, err := pc.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			break
		}
		if err != nil || n > maxDatagram {
			continue // an ICMP answer to something that was sent before
		}
		u.take(ctx, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), buf[:n])
	}
	for _, w := range u.ways {
		close(w.out)
	}
}

// take hands a datagram to the way of its sender; it never waits.
func (u *udpForward) take(ctx context.Context, from netip.AddrPort, b []byte) {
	a := u.a
	if w := u.ways[from]; w != nil {
		select {
		case <-w.done:
			if a.cfg.Elapsed() < w.retryAt {
				a.count(&a.droppedDatagrams)
				return
			}
			close(w.out)
			delete(u.ways, from)
		default:
		}
	}
	w := u.ways[from]
	if w == nil {
		if !a.ownDatagram(u.local, from) {
			a.count(&a.strangers)
			return
		}
		if len(u.ways) >= maxAssociations && !forgetEnded(u.ways) {
			a.count(&a.droppedDatagrams)
			return
		}
		w = &way{out: make(chan []byte, datagramQueue), done: make(chan struct{})}
		u.ways[from] = w
		u.wg.Go(func() { u.carry(ctx, from, w) })
	}
	select {
	case w.out <- append([]byte(nil), b...):
	default:
		a.count(&a.droppedDatagrams)
	}
}

// forgetEnded makes room by an ended way.
func forgetEnded[K comparable](ways map[K]*way) bool {
	for k, w := range ways {
		select {
		case <-w.done:
			close(w.out)
			delete(ways, k)
			return true
		default:
		}
	}
	return false
}

// ownDatagram reports whether from is a socket of the user who runs the agent.
func (a *Agent) ownDatagram(local, from netip.AddrPort) bool {
	if !from.Addr().IsLoopback() {
		return false
	}
	uid, err := a.udpPeer(local, from)
	if errors.Is(err, localuser.ErrUnsupported) && a.cfg.TrustLocalUsers || err == nil && uid == a.uid {
		return true
	}
	a.log.Warn("local datagram refused", zap.Stringer("remote_addr", from), zap.Uint32("uid", uid), zap.Stringer("reason", reason.LocalUser), zap.Error(err))
	return false
}

// carry opens the flow of one sender and moves datagrams both ways.
func (u *udpForward) carry(ctx context.Context, from netip.AddrPort, w *way) {
	defer close(w.done)
	a := u.a
	f, err := a.open(ctx, nil, func(t *routes) (*Resource, reason.Reason) { return t.forward(u.fw) })
	if err != nil {
		w.retryAt = a.cfg.Elapsed() + refusedFor
		a.refused("forward", senderAddr{from}, u.fw.App, err)
		return
	}
	defer a.drop(f)
	pump(ctx, f, w.out, func(b []byte) {
		if _, err := u.pc.WriteToUDPAddrPort(b, from); err != nil {
			a.count(&a.droppedDatagrams)
		}
	})
}

// pump moves datagrams from out to the flow, and from the flow to back, until
// the flow ends, out is closed or ctx ends.
func pump(ctx context.Context, f *flow, out <-chan []byte, back func([]byte)) {
	stop := context.AfterFunc(ctx, func() { f.remote.Close() })
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 65535)
		for {
			n, err := f.remote.Read(buf)
			if err != nil {
				return
			}
			back(buf[:n])
		}
	}()
	defer func() { f.remote.Close(); <-ended }()
	for {
		select {
		case <-ended:
			return
		case b, ok := <-out:
			if !ok {
				return
			}
			_ = f.remote.SetWriteDeadline(time.Now().Add(askTimeout)) // fails on an ended flow only, and then so does the write
			if _, err := f.remote.Write(b); err != nil {
				return
			}
		}
	}
}

// senderAddr stands for a sender where a connection is named.
type senderAddr struct{ netip.AddrPort }

// RemoteAddr returns the sender.
func (s senderAddr) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(s.AddrPort) }
