package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/internal/sock"
)

// The steps of a QUIC connection, in order:
//
//	1 prove    under load a stranger first proves his address by a Retry, which
//	           costs us no state (RFC 9000 §8.1.2)
//	2 begin    count, refuse beyond the limits
//	3 face     choose certificates by ALPN and server name; handshake
//	4 serve    hand over to the handler on a fresh goroutine
//
// QUIC itself keeps what is sent to an unproved address below three times of
// what came from there. 0-RTT is refused: its data could be played again.

// What a QUIC connection may hold. The windows of a tunnel may grow, a browser's
// stay at what HTTP/2 gives.
const (
	quicStreamWindow = 256 << 10
	quicConnWindow   = 1 << 20
	quicTunnelWindow = 16 << 20
	quicOneWay       = 8 // streams of a client in its life: three of HTTP/3, and some that mean nothing
	quicIdle         = 30 * time.Second
	quicKeepAlive    = 10 * time.Second
	costQUIC         = 64 << 10 // of a handshake: packets, crypto/tls, buffers
	unproved         = 8        // half-open connections of a source before it must prove its address
)

// QUIC says how the UDP half of a port behaves.
type QUIC struct {
	Streams  int                                 // requests of one HTTP/3 connection at once; default 100
	ResetKey *[32]byte                           // of stateless resets; the same after a restart, so that peers notice it at once; default: none are sent
	Wrap     func(net.PacketConn) net.PacketConn // what stands between socket and QUIC, such as the judge of permits; default: nothing
}

// packets is the QUIC listener on one UDP socket.
type packets struct {
	p      *Port
	pc     net.PacketConn
	tr     *quic.Transport
	ln     *quic.Listener
	half   *halfOpen
	most   int      // half-open connections; beyond a quarter all must prove their address
	wide   sync.Map // *quic.Conn of tunnels: their windows may grow
	guests sync.WaitGroup
}

// guest is a connection from its first packet on.
type guest struct {
	conn   Conn // as far as it is known
	from   netip.Prefix
	pend   *pending
	opened atomic.Bool // the handshake was good
}

type guestKey struct{}

// ListenPackets opens a UDP socket for [Port.AddPackets].
func ListenPackets(ctx context.Context, address string) (net.PacketConn, error) {
	// quic-go raises the socket's buffers as far as the system lets it, and would
	// print its regret where that is little.
	_ = os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on UDP %s: %w (is another process using the port? set quic.listen to another address, or to off)", address, err)
	}
	return pc, nil
}

// AddPackets makes [Port.Run] serve QUIC on pc, too, and close it in the end. It
// is called before Run.
func (p *Port) AddPackets(pc net.PacketConn) error {
	l := p.cfg.Limits
	most := max(1, min(l.HalfOpen, l.HalfOpenBytes/costQUIC))
	u := &packets{p: p, pc: pc, most: most, half: newHalfOpen(Limits{
		HalfOpen: most, HalfOpenPerSource: min(l.HalfOpenPerSource, most), HalfOpenBytes: l.HalfOpenBytes,
	})}
	below := sock.Lossy(pc, nil)
	if p.cfg.QUIC.Wrap != nil {
		below = p.cfg.QUIC.Wrap(pc)
	}
	u.tr = &quic.Transport{Conn: below, VerifySourceAddress: u.prove, ConnContext: u.begin}
	if k := p.cfg.QUIC.ResetKey; k != nil {
		u.tr.StatelessResetKey = (*quic.StatelessResetKey)(k)
	}
	streams := p.cfg.QUIC.Streams
	if streams == 0 {
		streams = 100
	}
	var err error
	u.ln, err = u.tr.Listen(&tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: u.face}, &quic.Config{
		InitialPacketSize:              1200, // fits a path of 1,280 bytes; larger ones are found
		HandshakeIdleTimeout:           l.Handshake / 2,
		MaxIdleTimeout:                 quicIdle,
		KeepAlivePeriod:                quicKeepAlive,
		InitialStreamReceiveWindow:     quicStreamWindow,
		MaxStreamReceiveWindow:         quicTunnelWindow,
		InitialConnectionReceiveWindow: quicConnWindow,
		MaxConnectionReceiveWindow:     quicTunnelWindow,
		AllowConnectionWindowIncrease: func(c *quic.Conn, _ uint64) bool {
			_, tunnel := u.wide.Load(c)
			return tunnel
		},
		MaxIncomingStreams:         int64(streams),
		MaxIncomingUniStreams:      quicOneWay,
		RequireStreamCreditRelease: true, // a stream counts until its request is done with, whatever the client thinks
		EnableDatagrams:            true,
	})
	if err != nil {
		return fmt.Errorf("serve QUIC on %s: %w", pc.LocalAddr(), err)
	}
	p.packets = append(p.packets, u)
	return nil
}

// prove reports whether a source must prove its address first.
func (u *packets) prove(a net.Addr) bool {
	n, _ := u.half.size()
	if n < max(1, u.most/4) && u.half.of(sourceOf(addrPort(a).Addr())) < unproved {
		return false
	}
	u.p.metrics.retries.Inc()
	return true
}

// begin runs step 2. ctx ends with the connection.
func (u *packets) begin(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	p := u.p
	remote := addrPort(info.RemoteAddr)
	g := &guest{conn: Conn{Remote: remote, Protocol: policy.TLS13}, from: sourceOf(remote.Addr())}
	refuse := func(r reason.Reason) (context.Context, error) {
		p.metrics.drop(r)
		p.cfg.Alerts.Raise(alert.Alert{Code: alert.ConnectionFlood, Reason: r, Remote: remote.Addr().String()})
		return nil, errors.New(r.String())
	}
	select {
	case p.slots <- struct{}{}:
	default:
		return refuse(reason.AcceptLimit)
	}
	if !p.half.enter(g.from, p.cfg.Limits.ConnectionsPerSource) {
		<-p.slots
		return refuse(reason.SourceLimit)
	}
	n, _ := u.half.size() // the newest is refused: whoever is here has proved his address, or is one of few
	pend, ok := (*pending)(nil), n < u.most
	if ok {
		pend, ok = u.half.add(g.from, func() {})
	}
	if ok && !u.half.grow(pend, costQUIC) {
		u.half.done(pend)
		ok = false
	}
	if !ok {
		p.half.leave(g.from)
		<-p.slots
		return refuse(reason.HandshakeLimit)
	}
	g.pend = pend
	u.guests.Add(1)
	context.AfterFunc(ctx, func() {
		defer u.guests.Done()
		u.half.done(pend)
		p.half.leave(g.from)
		<-p.slots
		if !g.opened.Load() {
			u.failed(g, context.Cause(ctx))
		}
	})
	return context.WithValue(ctx, guestKey{}, g), nil
}

// face runs step 3.
func (u *packets) face(h *tls.ClientHelloInfo) (*tls.Config, error) {
	if g, ok := h.Context().Value(guestKey{}).(*guest); ok {
		g.conn.SNI = canonicalName(h.ServerName)
	}
	f := u.p.faces.Load()
	if f.NoTLS {
		return nil, fault(reason.TLSRefused, "the profile is gm: TLCP only")
	}
	return f.choose(h.SupportedProtos, h.ServerName, false).quic, nil
}

// accept runs step 4. It returns nil when the listener is closed.
func (u *packets) accept() error {
	for {
		q, err := u.ln.Accept(context.Background())
		if err != nil {
			return nil // closed: Accept has no other error
		}
		g, ok := q.Context().Value(guestKey{}).(*guest)
		if !ok {
			_ = q.CloseWithError(0, "")
			continue
		}
		g.opened.Store(true)
		u.half.done(g.pend)
		u.p.serveQUIC(u, q, &g.conn)
	}
}

// serveQUIC gives q to its handler.
func (p *Port) serveQUIC(u *packets, q *quic.Conn, c *Conn) {
	s := q.ConnectionState().TLS
	c.QUIC, c.ALPN, c.Suite = q, s.NegotiatedProtocol, tls.CipherSuiteName(s.CipherSuite)
	if len(s.PeerCertificates) > 0 {
		c.Peer = s.PeerCertificates[0]
	}
	p.metrics.handshake(c.Protocol, reason.OK)
	p.metrics.suites.WithLabelValues(c.Protocol.String(), c.Suite).Inc()
	h := p.cfg.Handlers[c.ALPN]
	if h == nil {
		_ = q.CloseWithError(0, "") // crypto/tls has agreed on one that is served
		return
	}
	if c.ALPN == Tunnel || c.ALPN == TunnelSealed {
		u.wide.Store(q, struct{}{})
	}
	p.conns.Add(1)
	go func() {
		defer p.conns.Done()
		defer u.wide.Delete(q)
		defer p.contain(c, "handler of "+c.ALPN)
		h(p.handlers, c)
	}()
}

// failed names why there is no connection.
func (u *packets) failed(g *guest, err error) {
	var te *quic.TransportError
	switch {
	case errors.As(err, &te) && te.Remote:
		err = &net.OpError{Op: "remote error", Err: te}
	case errors.As(err, &te):
		for _, e := range te.Unwrap() {
			if e != nil && !errors.Is(e, net.ErrClosed) {
				err = e
			}
		}
	}
	var late *quic.HandshakeTimeoutError
	var silent *quic.IdleTimeoutError
	if errors.As(err, &late) || errors.As(err, &silent) {
		err = fault(reason.HelloTimeout, "no handshake in time")
	}
	u.p.tellFailed(g.conn.Remote, &g.conn, err)
}

// farewell says goodbye to the tunnels, so that their agents come back at once.
func (u *packets) farewell() {
	var all sync.WaitGroup // each takes until its last packet is sent
	u.wide.Range(func(q, _ any) bool {
		all.Go(func() { _ = q.(*quic.Conn).CloseWithError(0, "") })
		return true
	})
	all.Wait()
}

// close ends every connection, and waits.
func (u *packets) close() {
	_ = u.tr.Close()
	_ = u.pc.Close()
	u.guests.Wait()
}

func addrPort(a net.Addr) netip.AddrPort {
	if u, ok := a.(*net.UDPAddr); ok {
		ap := u.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
