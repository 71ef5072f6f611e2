package tlcp

import (
	"context"
	"errors"
	"fmt"
	"net"
)

// Dialer opens client connections. The zero value of NetDialer is usable.
type Dialer struct {
	NetDialer *net.Dialer // default: the zero net.Dialer
	Config    *Config     // required; ServerName defaults to the host of the address
}

// Dial connects to addr and runs the handshake; ctx bounds both.
func Dial(ctx context.Context, network, addr string, config *Config) (*Conn, error) {
	return (&Dialer{Config: config}).DialContext(ctx, network, addr)
}

// DialContext connects to addr and runs the handshake; ctx bounds both.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (*Conn, error) {
	if d.Config == nil {
		return nil, errors.New("tlcp: dial: no Config (RootCAs is needed)")
	}
	nd := d.NetDialer
	if nd == nil {
		nd = new(net.Dialer)
	}
	config := d.Config
	if config.ServerName == "" && !config.SkipServerName {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("tlcp: dial: %w", err)
		}
		config = config.Clone()
		config.ServerName = host
	}
	raw, err := nd.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := Client(raw, config)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// listener wraps what an inner listener accepts.
type listener struct {
	net.Listener
	config *Config
}

// Accept returns the next connection, as a *Conn. It does not handshake: a slow
// peer must not hold up the next.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return Server(c, l.config), nil
}

// NewListener returns a listener whose connections are TLCP servers with
// config, over those of inner.
func NewListener(inner net.Listener, config *Config) net.Listener {
	return &listener{inner, config}
}

// Listen listens on addr, as net.Listen does, for TLCP connections. A config
// that cannot serve is an error here.
func Listen(network, addr string, config *Config) (net.Listener, error) {
	if config == nil {
		return nil, errors.New("tlcp: listen: no Config")
	}
	if err := config.validateServer(); err != nil {
		return nil, fmt.Errorf("tlcp: listen: %w", err)
	}
	inner, err := net.Listen(network, addr)
	if err != nil {
		return nil, err
	}
	return NewListener(inner, config), nil
}
