package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/yumen-zt/yumen/gateway/listen"
	"github.com/yumen-zt/yumen/proxy"
)

// helloWait is how long an agent's first bytes may take after a QUIC handshake.
const helloWait = 10 * time.Second

// QUICConfig is the UDP half of the port: HTTP/3, and tunnels that run over
// QUIC. There is none with crypto.profile gm.
type QUICConfig struct {
	Disabled bool     `yaml:"disabled"` // no UDP socket; default false
	Listen   []string `yaml:"listen"`   // UDP addresses; default: those of listen
	AltSvc   string   `yaml:"alt_svc"`  // what answers over TCP say of HTTP/3; default h3=":PORT"; ma=86400; off: nothing
}

func (c *QUICConfig) same(o *QUICConfig) bool {
	return c.Disabled == o.Disabled && c.AltSvc == o.AltSvc && fmt.Sprint(c.Listen) == fmt.Sprint(o.Listen)
}

// quicFaults checks the part of the file.
func (c *Config) quicFaults(fault func(path, format string, args ...any)) {
	switch {
	case len(c.QUIC.Listen) == 0:
	case c.QUIC.Disabled:
		fault("quic.listen", "quic.disabled is set (remove one of them)")
	case !c.Crypto.Profile.TLS():
		fault("quic.listen", "crypto.profile %s refuses QUIC, which is TLS 1.3 (remove it)", c.Crypto.Profile)
	}
	for i, a := range c.QUIC.Listen {
		if !isAddress(a) {
			fault(fmt.Sprintf("quic.listen[%d]", i), "%q is no address such as :8443", a)
		}
	}
	for _, b := range []byte(c.QUIC.AltSvc) {
		if b < ' ' || b > '~' {
			fault("quic.alt_svc", "%q is no field value such as h3=\":443\"; ma=86400", c.QUIC.AltSvc)
			break
		}
	}
}

// openQUIC opens the UDP sockets: where TCP listens, unless the file says
// otherwise.
func (g *Gateway) openQUIC(ctx context.Context, cfg *Config) error {
	if cfg.QUIC.Disabled || !cfg.Crypto.Profile.TLS() {
		return nil
	}
	addrs := cfg.QUIC.Listen
	if len(addrs) == 0 {
		for _, a := range g.Addresses() {
			addrs = append(addrs, a.String())
		}
	}
	for _, a := range addrs {
		pc, err := listen.ListenPackets(ctx, a)
		if err != nil {
			return err
		}
		g.packets = append(g.packets, pc)
	}
	alt := cfg.QUIC.AltSvc
	if alt == "" {
		_, port, err := net.SplitHostPort(g.packets[0].LocalAddr().String())
		if err != nil {
			return fmt.Errorf("advertise HTTP/3: %w", err)
		}
		alt = fmt.Sprintf(`h3=":%s"; ma=86400`, port)
	}
	if alt != "off" {
		g.proxy.Advertise(alt)
	}
	return nil
}

// servePort serves TCP and UDP.
func (g *Gateway) servePort(ctx context.Context) error {
	for _, pc := range g.packets {
		if err := g.port.AddPackets(pc); err != nil {
			return err
		}
	}
	return g.port.Run(ctx, g.listeners...)
}

func (g *Gateway) serveHTTP3(_ context.Context, c *listen.Conn) {
	g.hold(c)
	defer g.drop(c)
	g.proxy.ServeQUIC(c.QUIC, &proxy.Conn{
		Protocol: c.Protocol, Suite: c.Suite, SNI: c.SNI, ALPN: c.ALPN, Peer: c.Peer, Remote: c.Remote,
	})
}

// resetKey returns the key of stateless resets, which is kept in the state
// folder: after a restart peers of the old process learn at once that their
// connections are gone (RFC 9000 §10.3).
func resetKey(dir string) (*[32]byte, error) {
	path := filepath.Join(dir, "quic-reset.key")
	key := new([32]byte)
	raw, err := os.ReadFile(path)
	if err == nil && len(raw) == len(key) {
		copy(key[:], raw)
		return key, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read key of QUIC resets: %w", err)
	}
	_, _ = rand.Read(key[:]) // never fails
	if err := os.WriteFile(path, key[:], 0o600); err != nil {
		return nil, fmt.Errorf("write key of QUIC resets: %w", err)
	}
	return key, nil
}
