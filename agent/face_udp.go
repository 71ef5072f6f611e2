package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/agent/localuser"
	"github.com/yumen-zt/yumen/agent/socks5"
	"github.com/yumen-zt/yumen/internal/reason"
)

const (
	maxDatagram     = 65507
	maxAssociations = 64              // destinations of one UDP ASSOCIATE
	datagramQueue   = 16              // datagrams that wait for one destination's answer
	refusedFor      = 5 * time.Second // a refused destination is not asked for again
	sourceRecheck   = time.Second     // how long a look at the source's owner holds
)

// association is one UDP ASSOCIATE: a loopback socket for one local program,
// alive as long as its TCP connection.
type association struct {
	a      *Agent
	c      net.Conn // the control connection
	pc     *net.UDPConn
	local  netip.AddrPort
	source netip.AddrPort // the program's socket, pinned by its first datagram
	seen   time.Duration  // Elapsed when source's owner was looked at
	ways   map[socks5.Target]*way
	wg     sync.WaitGroup
}

// way is one destination of an association. out is closed by run, and only by
// it.
type way struct {
	out     chan []byte
	done    chan struct{} // closed when it has ended
	retryAt time.Duration // a refused way: when it may be asked for again; set before done is closed
}

// serveAssociate serves UDP ASSOCIATE until the control connection ends.
func (a *Agent) serveAssociate(ctx context.Context, c net.Conn, declared socks5.Target) {
	host, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		_ = socks5.WriteReply(c, socks5.GeneralFailure, netip.AddrPort{})
		return
	}
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: host.IP})
	if err != nil {
		a.log.Warn("datagram socket not opened", zap.Error(err))
		_ = socks5.WriteReply(c, socks5.GeneralFailure, netip.AddrPort{})
		return
	}
	defer pc.Close()
	s := &association{a: a, c: c, pc: pc, ways: map[socks5.Target]*way{}}
	s.local = pc.LocalAddr().(*net.UDPAddr).AddrPort()
	if declared.Addr.IsLoopback() && declared.Port != 0 {
		s.source = netip.AddrPortFrom(declared.Addr, declared.Port)
	}
	if err := socks5.WriteReply(c, socks5.Granted, s.local); err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer s.wg.Wait()
	defer cancel()
	s.wg.Go(func() { s.run(ctx) })
	_, _ = io.Copy(io.Discard, c) // RFC 1928: the end of this connection ends the association
	pc.Close()
}

// run reads datagrams of the local program until the socket is closed.
func (s *association) run(ctx context.Context) {
	defer func() {
		for _, w := range s.ways {
			close(w.out)
		}
	}()
	buf := make([]byte, 65535)
	for {
		n, from, err := s.pc.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return
			}
			continue // an ICMP answer to something that was sent before
		}
		if !s.mine(netip.AddrPortFrom(from.Addr().Unmap(), from.Port())) {
			s.a.count(&s.a.strangers)
			continue
		}
		to, payload, err := socks5.ParseDatagram(buf[:n])
		if err != nil || len(payload) > maxDatagram {
			s.a.count(&s.a.droppedDatagrams)
			continue
		}
		s.send(ctx, to, payload)
	}
}

// mine reports whether a datagram from a source is the local program's. The
// first source of our user is the only one.
func (s *association) mine(from netip.AddrPort) bool {
	if !from.Addr().IsLoopback() || s.source.IsValid() && from != s.source {
		return false
	}
	now := s.a.cfg.Elapsed()
	if s.seen != 0 && now-s.seen < sourceRecheck {
		return true
	}
	uid, err := s.a.udpPeer(s.local, from)
	trusted := errors.Is(err, localuser.ErrUnsupported) && s.a.cfg.TrustLocalUsers
	if !trusted && (err != nil || uid != s.a.uid) {
		s.a.log.Warn("local datagram refused", zap.Stringer("remote_addr", from), zap.Uint32("uid", uid), zap.Stringer("reason", reason.LocalUser), zap.Error(err))
		return false
	}
	if !s.source.IsValid() {
		s.source = from // before the first way begins, whose goroutine reads it
	}
	s.seen = max(now, 1)
	return true
}

// send hands a datagram to the way of its destination; it never waits.
func (s *association) send(ctx context.Context, to socks5.Target, payload []byte) {
	w := s.ways[to]
	if w != nil {
		select {
		case <-w.done:
			if s.a.cfg.Elapsed() < w.retryAt {
				s.a.count(&s.a.droppedDatagrams)
				return
			}
			close(w.out)
			delete(s.ways, to)
			w = nil
		default:
		}
	}
	if w == nil {
		if len(s.ways) >= maxAssociations && !forgetEnded(s.ways) {
			s.a.count(&s.a.droppedDatagrams)
			return
		}
		w = &way{out: make(chan []byte, datagramQueue), done: make(chan struct{})}
		s.ways[to] = w
		s.wg.Go(func() { s.carry(ctx, to, w) })
	}
	select {
	case w.out <- append([]byte(nil), payload...):
	default:
		s.a.count(&s.a.droppedDatagrams)
	}
}

// carry opens the flow of one destination and moves datagrams both ways.
func (s *association) carry(ctx context.Context, dest socks5.Target, w *way) {
	defer close(w.done)
	a := s.a
	to := target("udp", dest.Name, dest.Addr, dest.Port)
	f, err := a.open(ctx, nil, func(t *routes) (*Resource, reason.Reason) { return t.lookup(to) })
	if err != nil {
		w.retryAt = a.cfg.Elapsed() + refusedFor
		a.refused("socks5", s.c, to.String(), err)
		return
	}
	defer a.drop(f)
	pump(ctx, f, w.out, func(b []byte) {
		out := socks5.AppendDatagram(make([]byte, 0, len(b)+300), dest, b)
		if _, err := s.pc.WriteToUDPAddrPort(out, s.source); err != nil {
			a.count(&a.droppedDatagrams)
		}
	})
}
