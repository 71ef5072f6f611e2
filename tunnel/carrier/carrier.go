package carrier

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/hello"
	"github.com/yumen-zt/yumen/internal/sock"
)

// ALPN is the protocol name of version 1 records. ALPNSealed is theirs inside
// TLCP, which runs inside the carrier that offers it.
const (
	ALPN       = "yumen/1"
	ALPNSealed = "yumen/1-tlcp"
)

// Names of the carriers, as `carrier:` of agent.yaml and the agent's status
// spell them.
const (
	NameTLCP = "tlcp"
	NameTLS  = "tls"
	NameQUIC = "quic"
	NameAuto = "auto" // the best that works
)

// Conn is an authenticated carrier: an ordered, reliable byte stream.
type Conn interface {
	net.Conn
	// State says what the handshake agreed on; its Peer is the leaf
	// certificate that the other end proved.
	State() channel.State
}

// Dialer connects an agent to a gateway's address (host:port). Dial returns
// after the handshake. A Dialer may be used by several goroutines at once.
type Dialer interface {
	Dial(ctx context.Context, addr string) (Conn, error)
}

// TCP dials over TCP by the protocol of its channel: TLCP, the default
// carrier, or TLS 1.2 or newer (M71). It never tries the other one.
type TCP struct {
	Channel *channel.Client             // must offer the ALPN alone; required
	ALPN    string                      // default ALPN
	Peer    func(certid.Identity) error // which gateway it must be; default: the channel's own check
}

// Dial connects, verifies the gateway and demands ALPN.
func (d *TCP) Dial(ctx context.Context, addr string) (Conn, error) {
	dial := d.Channel.Dial
	if d.Peer != nil {
		dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			return d.Channel.DialPeer(ctx, network, addr, d.Peer)
		}
	}
	c, err := dial(ctx, "tcp", addr)
	var none *channel.DialError
	switch {
	case errors.As(err, &none):
		return nil, fmt.Errorf("dial gateway: %w", err)
	case err != nil:
		return nil, fmt.Errorf("handshake with gateway %s: %w", addr, err)
	}
	s, _ := channel.Of(c)
	if want := cmp.Or(d.ALPN, ALPN); s.ALPN != want {
		return nil, errors.Join(fmt.Errorf("handshake with gateway %s: it does not speak %s (the port of agents is needed)", addr, want), c.Close())
	}
	if t, ok := c.(interface{ Settle() }); ok {
		t.Settle()
	}
	Tune(c)
	return conn{Gather(c), s}, nil
}

// RoundTrip returns the shortest round trip of a carrier's path, queues not
// counted, or 0 where that is not known.
func RoundTrip(c net.Conn) time.Duration {
	if q, ok := c.(*quicConn); ok {
		return q.q.ConnectionStats().MinRTT
	}
	if t := sock.TCP(c); t != nil {
		return tcpRoundTrip(t)
	}
	return 0
}

// Gather returns c, or what writes several records of TLS to the socket at once,
// where c is TLS on a connection that can: crypto/tls makes a system call of
// each.
func Gather(c net.Conn) net.Conn {
	if t, ok := c.(*tls.Conn); ok {
		if r, ok := t.NetConn().(*hello.ReplayConn); ok {
			return gathered{t, r}
		}
	}
	return c
}

type gathered struct {
	*tls.Conn
	below *hello.ReplayConn
}

const tlsRecord = 16 << 10 // bytes of payload, at most

// Write implements [net.Conn].
func (c gathered) Write(b []byte) (n int, err error) {
	if len(b) <= tlsRecord {
		return c.Conn.Write(b)
	}
	if flush := c.below.Gather(func() error { n, err = c.Conn.Write(b); return err }); err == nil && flush != nil {
		return 0, flush
	}
	return n, err
}

type conn struct {
	net.Conn
	state channel.State
}

// NetConn returns the connection below the channel.
func (c conn) NetConn() net.Conn {
	if inner, ok := c.Conn.(interface{ NetConn() net.Conn }); ok {
		return inner.NetConn()
	}
	return c.Conn
}

// State returns what the handshake agreed on.
func (c conn) State() channel.State { return c.state }
