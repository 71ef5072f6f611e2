package listen

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

// notSent bounds the bytes that the kernel holds unsent for one connection, so
// that a cut leaves little behind.
const notSent = 128 << 10

// accept runs step 1 for one listener. It returns nil when ctx is done.
func (p *Port) accept(ctx context.Context, ln net.Listener) error {
	const most = time.Second
	var pause time.Duration
	for {
		raw, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			// Out of descriptors or memory: wait instead of spinning.
			pause = min(max(2*pause, 5*time.Millisecond), most)
			p.cfg.Logger.Warn("accept failed", zap.Error(err), zap.Duration("pause", pause))
			p.cfg.Alerts.Raise(alert.Alert{Code: alert.ConnectionFlood, Reason: reason.AcceptLimit, Detail: err.Error()})
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		tcp, ok := raw.(*net.TCPConn)
		if !ok {
			raw.Close()
			continue
		}
		p.admit(tcp)
	}
}

// admit counts the connection and starts its goroutine, or refuses it without
// a byte.
func (p *Port) admit(tcp *net.TCPConn) {
	remote := remoteOf(tcp)
	admission := Admitted
	if p.cfg.Admit != nil {
		admission = p.cfg.Admit(localOf(tcp), remote)
	}
	if admission == Refused {
		p.metrics.drop(reason.GuardUnauthorized)
		reset(tcp)
		return
	}
	select {
	case p.slots <- struct{}{}:
	default:
		p.refuse(tcp, remote, reason.AcceptLimit)
		return
	}
	// Behind a forwarder the source is not known before its header.
	from := netip.Prefix{}
	if !p.forwarder(remote.Addr()) {
		from = sourceOf(remote.Addr())
	}
	if !p.half.enter(from, p.cfg.Limits.ConnectionsPerSource) {
		<-p.slots
		p.refuse(tcp, remote, reason.SourceLimit)
		return
	}
	pend, ok := p.half.add(from, func() { reset(tcp) })
	if !ok {
		p.half.leave(from)
		<-p.slots
		p.refuse(tcp, remote, reason.HandshakeLimit)
		return
	}
	setNotSent(tcp)
	p.conns.Add(1)
	go p.greet(tcp, remote, admission, pend)
}

// release ends what admit counted of a connection from from.
func (p *Port) release(from netip.Prefix) {
	p.half.leave(from)
	<-p.slots
	p.conns.Done()
}

// keptDescriptors are for what no client has: listeners, files, and the link to
// the control center, which must report in any case.
const keptDescriptors = 64

// byDescriptors returns how many connections there may be at most where the
// system gives this process so many descriptors: a quarter is for connections to
// applications, which requests share.
func byDescriptors(most int, descriptors uint64) int {
	const plenty = 1 << 40
	return min(most, max(1, (int(min(descriptors, plenty))-keptDescriptors)/4*3))
}

// descriptors returns how many this process may open.
func descriptors() uint64 {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return 1 << 40
	}
	return l.Cur
}

func (p *Port) refuse(tcp *net.TCPConn, remote netip.AddrPort, r reason.Reason) {
	p.metrics.drop(r)
	p.cfg.Alerts.Raise(alert.Alert{Code: alert.ConnectionFlood, Reason: r, Remote: remote.Addr().String()})
	reset(tcp)
}

// reset closes at once and forgets unsent bytes.
func reset(tcp *net.TCPConn) {
	_ = tcp.SetLinger(0) // a socket that is gone already needs no linger
	tcp.Close()
}

func remoteOf(c net.Conn) netip.AddrPort {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

func localOf(c net.Conn) netip.AddrPort {
	if a, ok := c.LocalAddr().(*net.TCPAddr); ok {
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

func setNotSent(tcp *net.TCPConn) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	// Best effort: without the option a cut leaves up to a send buffer behind.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent)
	})
}
