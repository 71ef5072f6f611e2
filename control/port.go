package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/failed"
	"github.com/yumen-zt/yumen/crypto/hello"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// Bounds of connections that have not yet shaken hands.
const (
	helloTimeout     = 5 * time.Second // for the whole ClientHello
	handshakeTimeout = 10 * time.Second
	maxHalfOpen      = 1024 // in all; the oldest goes first
	maxHalfOpenEach  = 64   // of one IPv4 address or IPv6 /64
)

// face is what one address of the control center shows: by TLS, by TLCP or
// both. A nil configuration refuses the protocol.
type face struct {
	tls  *tls.Config
	tlcp *tlcp.Config
}

// port is a listener whose connections have shaken hands, by TLS or TLCP as
// their first message says. Accept never waits for a peer's handshake: each
// runs on a goroutine of its own, under a deadline and under a bound.
type port struct {
	net.Listener
	face   face
	stats  *portStats
	failed func(net.Addr, error) // told of each connection that did not come to be

	ready chan net.Conn
	done  chan struct{} // closed by Close
	end   sync.Once
	wg    sync.WaitGroup // accept and the handshakes
	fault atomic.Pointer[error]

	mu    sync.Mutex
	order []*halfOpen          // the oldest first; guarded by mu
	from  map[netip.Prefix]int // half-open connections by source; guarded by mu
}

// portStats counts what the ports of a control center did.
type portStats struct {
	tls, tlcp, refused atomic.Uint64

	told    failed.Bucket // bounds log and audit of failed handshakes
	mu      sync.Mutex
	reasons map[reason.Reason]uint64 // failed handshakes; guarded by mu
}

// count counts a failed handshake.
func (s *portStats) count(r reason.Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reasons == nil {
		s.reasons = map[reason.Reason]uint64{}
	}
	s.reasons[r]++
}

// failures returns the failed handshakes, by reason and together.
func (s *portStats) failures() (by map[string]uint64, all uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	by = map[string]uint64{}
	for r, n := range s.reasons {
		by[r.String()] = n
		all += n
	}
	return by, all
}

var errTooManyHalfOpen = &hello.Error{Reason: reason.HandshakeLimit, Detail: "too many half-open connections of this source"}

// handshakeFailed counts, logs, audits and alerts a connection that did not come
// to be, log and audit within what is bearable.
func (s *Server) handshakeFailed(remote net.Addr, err error) {
	r := failed.Reason(err)
	s.port.count(r)
	if r == reason.ClientGone {
		return // a probe or a health check that said nothing
	}
	now := s.cfg.Now()
	if ok, missed := s.port.told.Allow(now); ok {
		detail := failed.Describe(err, "")
		s.log.Info("handshake failed", zap.Stringer("reason", r), zap.Stringer("remote_addr", remote), zap.String("error", detail), zap.Int("missed", missed))
		if missed > 0 {
			detail += fmt.Sprintf("; %d others before it were only counted", missed)
		}
		s.audit.Write(&audit.Record{Time: now, Kind: audit.Login, Object: "handshake", Remote: remote.String(), Result: r.String(), Code: r, Detail: detail})
		s.cfg.Alerts.Raise(alert.Alert{Code: alert.HandshakeFaults, Time: now, Reason: r, Remote: addressOf(remote.String())})
	}
}

// halfOpen is a connection before the end of its handshake.
type halfOpen struct {
	conn   net.Conn
	source netip.Prefix
}

func newPort(ln net.Listener, f face, failed func(net.Addr, error), stats *portStats) *port {
	p := &port{Listener: ln, face: f, failed: failed, stats: stats, ready: make(chan net.Conn), done: make(chan struct{}), from: map[netip.Prefix]int{}}
	p.wg.Go(p.accept)
	return p
}

// Accept returns the next connection whose handshake is done, a *tls.Conn or a
// *tlcp.Conn.
func (p *port) Accept() (net.Conn, error) {
	select {
	case c := <-p.ready:
		return c, nil
	case <-p.done:
		if err := p.fault.Load(); err != nil {
			return nil, *err
		}
		return nil, net.ErrClosed
	}
}

// Close ends the listener and the handshakes, and waits for them.
func (p *port) Close() error {
	err := p.stop(nil)
	p.wg.Wait()
	return err
}

func (p *port) stop(fault error) (err error) {
	p.end.Do(func() {
		if fault != nil {
			p.fault.Store(&fault)
		}
		close(p.done)
		err = p.Listener.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, h := range p.order {
			h.conn.Close()
		}
	})
	return err
}

func (p *port) accept() {
	pause := 5 * time.Millisecond
	for {
		raw, err := p.Listener.Accept()
		switch {
		case err == nil:
			pause = 5 * time.Millisecond
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ECONNABORTED):
			select {
			case <-time.After(pause):
			case <-p.done:
				return
			}
			pause = min(2*pause, time.Second)
			continue
		default:
			_ = p.stop(err)
			return
		}
		h, ok := p.enter(raw)
		if !ok {
			p.stats.refused.Add(1)
			p.failed(raw.RemoteAddr(), errTooManyHalfOpen)
			raw.Close()
			continue
		}
		p.wg.Go(func() { p.greet(h) })
	}
}

// enter counts a connection; the oldest in all makes room for it, and a source
// that has its share is refused.
func (p *port) enter(raw net.Conn) (*halfOpen, bool) {
	h := &halfOpen{conn: raw}
	if a, err := netip.ParseAddrPort(raw.RemoteAddr().String()); err == nil {
		bits := 64
		if a.Addr().Unmap().Is4() {
			bits = 32
		}
		h.source, _ = a.Addr().Unmap().WithZone("").Prefix(bits)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return nil, false
	default:
	}
	if p.from[h.source] >= maxHalfOpenEach {
		return nil, false
	}
	if len(p.order) >= maxHalfOpen {
		p.stats.refused.Add(1)
		p.order[0].conn.Close() // its handshake fails
		p.drop(p.order[0])
	}
	p.from[h.source]++
	p.order = append(p.order, h)
	return h, true
}

// drop takes h off the list, once; the caller holds mu.
func (p *port) drop(h *halfOpen) {
	i := slices.Index(p.order, h)
	if i < 0 {
		return
	}
	p.order = slices.Delete(p.order, i, i+1)
	if p.from[h.source]--; p.from[h.source] == 0 {
		delete(p.from, h.source)
	}
}

func (p *port) greet(h *halfOpen) {
	conn, err := p.shake(h.conn)
	p.mu.Lock()
	p.drop(h)
	p.mu.Unlock()
	if err != nil {
		p.failed(h.conn.RemoteAddr(), err)
		h.conn.Close()
		return
	}
	select {
	case p.ready <- conn:
	case <-p.done:
		conn.Close()
	}
}

// shake reads the first message and runs the handshake of its protocol.
func (p *port) shake(raw net.Conn) (net.Conn, error) {
	if err := raw.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return nil, err
	}
	first, err := hello.Read(raw)
	if err != nil {
		var no *hello.Error
		if errors.As(err, &no) && no.Reason == reason.PlainHTTP {
			_ = raw.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = raw.Write([]byte("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\nYM-105 use https 请使用 https\n")) // a courtesy
		}
		return nil, err
	}
	if err := raw.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	var conn interface {
		net.Conn
		HandshakeContext(context.Context) error
	}
	count := &p.stats.tls
	switch {
	case first.TLCP() && p.face.tlcp != nil:
		conn, count = tlcp.Server(hello.Replay(raw, first.Raw), p.face.tlcp), &p.stats.tlcp
	case !first.TLCP() && p.face.tls != nil:
		conn = tls.Server(hello.Replay(raw, first.Raw), p.face.tls)
	default:
		version := hello.VersionTLS12
		if first.TLCP() {
			version = hello.VersionTLCP
		}
		_, _ = raw.Write([]byte{21, byte(version >> 8), byte(version), 0, 2, 2, 70}) // alert: fatal, protocol_version; the peer may be gone
		return nil, &hello.Error{Reason: reason.ProtocolRefused, Detail: fmt.Sprintf("refuse %s: not of the profile (crypto.profile)", first.Describe())}
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	count.Add(1)
	return conn, raw.SetDeadline(time.Time{})
}

// channelKey is the context key under which a connection's state is kept.
type channelKey struct{}

// withChannel keeps the state of a connection for its requests.
func withChannel(ctx context.Context, c net.Conn) context.Context {
	if s, ok := channel.Of(c); ok {
		return context.WithValue(ctx, channelKey{}, s)
	}
	return ctx
}

// channelOf returns the state of the connection that a request came on: by TLS
// and TLCP alike, the one place that handlers ask who is there.
func channelOf(ctx context.Context) channel.State {
	s, _ := ctx.Value(channelKey{}).(channel.State)
	return s
}
