package carrier

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/internal/sock"
)

// QUIC dials over UDP (RFC 9000), with TLS 1.3 and the device's certificate. The
// tunnel's records travel on one stream, the datagrams of its flows in DATAGRAM
// frames (RFC 9221) where they fit. A QUIC carrier follows its device to another
// network.
type QUIC struct {
	Channel *channel.Client             // of TLS; required
	Peer    func(certid.Identity) error // which gateway it must be; required
	ALPN    string                      // default ALPN
	// Packets opens the socket for connections to addr; small says that Initials
	// must leave room for a permit (spa.MaxInitial). Default: any UDP socket.
	Packets func(ctx context.Context, addr *net.UDPAddr) (pc net.PacketConn, small bool, err error)
	// Source returns the address from which the system reaches addr now, false for
	// none: another one is another network. Default: the system is asked.
	Source func(addr *net.UDPAddr) (netip.Addr, bool)
}

// How a QUIC carrier is kept. The mux gives a silent peer up earlier than
// maxSilence.
const (
	maxSilence   = 30 * time.Second
	streamWindow = 1 << 20
	connWindow   = 16 << 20
	leaveWithin  = 100 * time.Millisecond // for the last record, before the connection is closed
)

// QUICConfig is the configuration of an agent's connections. initial is the size
// of the first packets, 0 for the usual one.
func quicConfig(initial uint16) *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout: 5 * time.Second, MaxIdleTimeout: maxSilence,
		InitialStreamReceiveWindow: streamWindow, MaxStreamReceiveWindow: connWindow,
		InitialConnectionReceiveWindow: streamWindow, MaxConnectionReceiveWindow: connWindow,
		MaxIncomingStreams: -1, MaxIncomingUniStreams: -1, EnableDatagrams: true, InitialPacketSize: initial,
	}
}

// Dial connects, verifies the gateway and demands the ALPN.
func (d *QUIC) Dial(ctx context.Context, addr string) (Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial gateway: %w", err)
	}
	to, err := resolveUDP(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("dial gateway: %w", err)
	}
	open := d.Packets
	if open == nil {
		open = anySocket
	}
	conf, err := d.Channel.TLS(host, d.Peer)
	if err != nil {
		return nil, err
	}
	conf.MinVersion, conf.NextProtos = tls.VersionTLS13, []string{ALPN}
	if d.ALPN != "" {
		conf.NextProtos = []string{d.ALPN}
	}
	pc, small, err := open(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("dial gateway: %w", err)
	}
	initial := uint16(0)
	if small {
		initial = 1200
	}
	stands := new(atomic.Bool) // before that, a network that is not there is an error
	tr := &quic.Transport{Conn: sock.Lossy(pc, stands)}
	q, err := tr.Dial(ctx, to, conf, quicConfig(initial))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("handshake by QUIC with gateway %s: %w", addr, err), tr.Close(), pc.Close())
	}
	str, err := q.OpenStream()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("handshake by QUIC with gateway %s: %w", addr, err), q.CloseWithError(0, ""), tr.Close(), pc.Close())
	}
	stands.Store(true)
	c := newQUIC(q, str)
	c.mover = &mover{q: q, to: to, open: open, source: d.Source, used: []path{{tr, pc}}}
	c.mover.start()
	return c, nil
}

func anySocket(context.Context, *net.UDPAddr) (net.PacketConn, bool, error) {
	pc, err := net.ListenUDP("udp", nil)
	return pc, false, err
}

func resolveUDP(ctx context.Context, addr string) (*net.UDPAddr, error) {
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return nil, err
	}
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return nil, err
	}
	return &net.UDPAddr{IP: ips[0].IP, Zone: ips[0].Zone, Port: port}, nil
}

// AcceptQUIC waits for the stream of the tunnel that the agent at the other end
// of q opens.
func AcceptQUIC(ctx context.Context, q *quic.Conn) (Conn, error) {
	str, err := q.AcceptStream(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("accept tunnel: %w", err), q.CloseWithError(0, ""))
	}
	return newQUIC(q, str), nil
}

// quicConn is a connection whose only stream is a byte stream to others.
type quicConn struct {
	*quic.Stream
	q     *quic.Conn
	state channel.State
	mover *mover // of an agent's
}

func newQUIC(q *quic.Conn, str *quic.Stream) *quicConn {
	s := channel.OfTLS(q.ConnectionState().TLS)
	s.Protocol = NameQUIC
	return &quicConn{Stream: str, q: q, state: s}
}

// State returns what the handshake agreed on.
func (c *quicConn) State() channel.State { return c.state }

func (c *quicConn) LocalAddr() net.Addr { return c.q.LocalAddr() }

// RemoteAddr returns where the other end is now.
func (c *quicConn) RemoteAddr() net.Addr { return c.q.RemoteAddr() }

// SendDatagram sends b apart from the stream: soon, or never. It reports false
// for one that is too large for the path.
func (c *quicConn) SendDatagram(b []byte) (sent bool, err error) {
	err = c.q.SendDatagram(b)
	var large *quic.DatagramTooLargeError
	if errors.As(err, &large) {
		return false, nil
	}
	return err == nil, err
}

// ReceiveDatagram waits for the next one, until the connection ends.
func (c *quicConn) ReceiveDatagram() ([]byte, error) { return c.q.ReceiveDatagram(c.q.Context()) }

// Close ends the stream, gives what was written a moment to arrive, and closes
// the connection.
func (c *quicConn) Close() error {
	c.CancelRead(0)
	_ = c.Stream.Close()
	wait := time.NewTimer(leaveWithin)
	defer wait.Stop()
	select {
	case <-c.q.Context().Done():
	case <-wait.C:
	}
	err := c.q.CloseWithError(0, "")
	if c.mover != nil {
		c.mover.end()
	}
	return err
}
