package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

// serveQUIC makes g serve its TCP port's number over UDP, too, with TLCP inside
// where the agent wants it; stop ends it and its tunnels.
func (g *labGateway) serveQUIC(keys *keystore.Store) (stop func()) {
	t := g.t
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	cert, err := keys.TLSCertificate(keystore.TLS)
	must(err)
	roots, err := keys.TLSRoots()
	must(err)
	pair, err := keys.TLCPPair()
	must(err)
	rootsSM, err := keys.Root(keystore.TLCPRoot)
	must(err)
	pc, err := net.ListenPacket("udp", g.l.Addr().String())
	must(err)
	tr := &quic.Transport{Conn: pc}
	ln, err := tr.Listen(&tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
		NextProtos: []string{carrier.ALPN, carrier.ALPNSealed}}, &quic.Config{EnableDatagrams: true})
	must(err)
	var ours []*mux.Session
	var serving sync.WaitGroup
	g.wg.Go(func() {
		for {
			q, err := ln.Accept(context.Background())
			if err != nil {
				return
			}
			serving.Go(func() {
				conn, err := carrier.AcceptQUIC(context.Background(), q)
				if err != nil {
					return
				}
				var c net.Conn = conn
				if conn.State().ALPN == carrier.ALPNSealed {
					in := tlcp.Server(c, &tlcp.Config{Certificates: []*tlcp.Pair{pair}, ClientCAs: rootsSM,
						ClientAuth: tlcp.RequireAndVerifyClientCert, NextProtos: []string{carrier.ALPN}})
					if err := in.HandshakeContext(context.Background()); err != nil {
						t.Errorf("inside: %v", err)
						return
					}
					c = in
				}
				h := &labTunnel{g: g}
				h.mux = mux.Server(c, mux.Config{Handler: h})
				g.mu.Lock()
				g.sessions = append(g.sessions, h.mux)
				ours = append(ours, h.mux)
				g.mu.Unlock()
				_ = h.mux.Run(context.Background())
			})
		}
	})
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		g.mu.Lock()
		for _, s := range ours {
			s.Close(reason.Shutdown)
		}
		g.mu.Unlock()
		_ = ln.Close()
		serving.Wait() // the farewell is on its way
		_ = tr.Close()
		_ = pc.Close()
	}
	t.Cleanup(stop)
	return stop
}

// quicGateway is a lab gateway of the default carrier, with its keys.
func quicGateway(t *testing.T, ca *lab.CA) (*labGateway, *keystore.Store) {
	t.Helper()
	g := newLabGateway(t, ca, "GW000000001")
	keys, err := keystore.Open(filepath.Join(g.dir, "keys"), []byte("pass"))
	if err != nil {
		t.Fatal(err)
	}
	return g, keys
}

// GCR002 M71, M73: a tunnel over QUIC, and one that is SM4-sealed inside.
func TestGCR002_M71_TunnelOverQUICWithEnrolledKeys(t *testing.T) {
	ca := newLab(t)
	for _, seal := range []bool{false, true} {
		g, keys := quicGateway(t, ca)
		g.serveQUIC(keys)
		s := tunnelWithEnrolledKeys(t, ca, g, func(c *Config) { c.Carrier, c.SealTunnels = carrier.NameQUIC, seal })
		want, suite := "quic", "TLS_"
		if seal {
			want, suite = "quic+tlcp", "ECDHE_SM4_GCM_SM3"
		}
		if s.Carrier != want || !strings.HasPrefix(s.Suite, suite) || s.CarrierWhy != "carrier: quic" {
			t.Errorf("sealed %v: carrier %s, %s, %s", seal, s.Carrier, s.Suite, s.CarrierWhy)
		}
	}
}

// The best carrier that works is used; what is lost is told, and found again.
func TestCarriersRaceFallAndClimb(t *testing.T) {
	ca := newLab(t)
	g, keys := quicGateway(t, ca)
	stop := g.serveQUIC(keys)
	r := labAgent(t, ca, func(c *Config) { c.Carrier = carrier.NameAuto })
	r.a.dialer.(*gatewayDialer).climb = 50 * time.Millisecond
	r.link.resources.Gateways = []wire.GatewayRef{g.ref}
	r.serve()
	if s := r.a.Status(); s.Carrier != "quic" || s.CarrierWhy != "carrier: auto" {
		t.Errorf("at first: %s, %s", s.Carrier, s.CarrierWhy)
	}
	stop()
	r.wait("the fall to TLCP", func(s Status) bool { return s.State == Ready && s.Carrier == "tlcp" })
	if s := r.a.Status(); s.CarrierWhy != "carrier: auto; quic: no answer within 300ms" {
		t.Errorf("after the fall: %s", s.CarrierWhy)
	}
	g.serveQUIC(keys)
	r.wait("the climb to QUIC", func(s Status) bool { return s.State == Ready && s.Carrier == "quic" })
	c, code := socks(t, r.face("socks5"), "10.0.0.5:5432")
	if code != 0 {
		t.Fatalf("code %d", code)
	}
	roundTrip(t, c)
}

func TestCarriersOfTheProfiles(t *testing.T) {
	for _, c := range []struct {
		profile, carrier string
		seal             bool
		want             string // the carriers, or the fault
	}{
		{"mixed", "", false, "tlcp"},
		{"intl", "", false, "tls"},
		{"gm", "", false, "tlcp"},
		{"mixed", "auto", false, "quic tlcp tls"},
		{"intl", "auto", false, "quic tls"},
		{"gm", "auto", false, "tlcp"},
		{"mixed", "quic", true, "quic"},
		{"gm", "quic", false, "fault"},
		{"gm", "tls", false, "fault"},
		{"intl", "tlcp", false, "fault"},
		{"intl", "quic", true, "fault"},
		{"mixed", "udp", false, "fault"},
	} {
		cfg := Config{Carrier: c.carrier, SealTunnels: c.seal}
		cfg.Crypto.Profile = profile.Profile(c.profile)
		got := strings.Join(cfg.carriers(), " ")
		cfg.carrierFaults(func(string, string, ...any) { got = "fault" })
		if got != c.want {
			t.Errorf("%s, %s, sealed %v: %s, want %s", c.profile, c.carrier, c.seal, got, c.want)
		}
	}
}

// The race is decided by who comes through, not by who set off first; those that
// lose are closed.
func TestRaceOfCarriers(t *testing.T) {
	d := &gatewayDialer{}
	block := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	closed := make(chan string, 3)
	for _, c := range []struct {
		name string
		dial map[string]func(context.Context) error
		want string
	}{
		{"the first", map[string]func(context.Context) error{"a": nil, "b": nil}, "a"},
		{"the first is silent", map[string]func(context.Context) error{"a": block, "b": nil}, "b"},
		{"two fail", map[string]func(context.Context) error{"a": func(context.Context) error { return errors.New("no") }, "b": func(context.Context) error { return errors.New("no") }, "c": nil}, "c"},
		{"none", map[string]func(context.Context) error{"a": func(context.Context) error { return errors.New("no") }}, ""},
	} {
		order := []string{}
		for name := range c.dial {
			order = append(order, name)
		}
		slices.Sort(order)
		conn, rank, lost, err := d.race(t.Context(), order, func(ctx context.Context, name string) (carrier.Conn, error) {
			if f := c.dial[name]; f != nil {
				if err := f(ctx); err != nil {
					return nil, err
				}
			}
			return &namedConn{name: name, closed: closed}, nil
		})
		switch {
		case c.want == "" && err == nil, c.want != "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (conn.(*namedConn).name != c.want || order[rank] != c.want || (rank > 0) != (lost != "")):
			t.Errorf("%s: %s, rank %d, %q", c.name, conn.(*namedConn).name, rank, lost)
		}
	}
}

type namedConn struct {
	carrier.Conn
	name   string
	closed chan string
}

func (c *namedConn) Close() error { c.closed <- c.name; return nil }
