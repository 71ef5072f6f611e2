package interop

import (
	"bytes"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/tjfoc/gmsm/gmtls"

	"github.com/yumen-zt/yumen/crypto/diagnose"
	"github.com/yumen-zt/yumen/crypto/keystore"
)

// What `yumen doctor tls` says of a server of gmtls: TLCP by one suite, with
// certificates that are right, and no TLS.
func TestDoctorOfAGmtlsServer(t *testing.T) {
	s := newSite(t)
	roots, err := keystore.ParseChain(s.ca.RootPEM(keystore.TLCPRoot))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		edit func(*gmtls.Config, *diagnose.ServerOptions)
		has  []string
		none []string // findings that must not be there
		bad  bool
	}{
		{"good", func(*gmtls.Config, *diagnose.ServerOptions) {}, []string{"tlcp-trusted", "pair-good"}, nil, false},
		{"mutual", func(p *gmtls.Config, _ *diagnose.ServerOptions) { p.ClientAuth = gmtls.RequireAndVerifyClientCert }, nil, nil, false},
		{"another name", func(_ *gmtls.Config, o *diagnose.ServerOptions) { o.ServerName = "other.example.org" }, []string{"name-missing"}, []string{"tlcp-trusted"}, true},
		{"certificates exchanged", func(p *gmtls.Config, _ *diagnose.ServerOptions) { slices.Reverse(p.Certificates) }, []string{"order", "tlcp-signed-enc"}, []string{"pair-good"}, true},
		{"one certificate twice", func(p *gmtls.Config, _ *diagnose.ServerOptions) { p.Certificates[1] = p.Certificates[0] }, []string{"same-cert"}, []string{"pair-good"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			peer := s.peerConfig()
			peer.Certificates = []gmtls.Certificate{s.server.signCert, s.server.encCert}
			o := diagnose.ServerOptions{ServerName: "gw.example.org", TLCPRoots: []*smx509.Certificate{roots[0]}, Step: 3 * time.Second}
			c.edit(peer, &o)
			o.Address = serveGmtls(t, peer)
			r := diagnose.Server(t.Context(), o)
			var text bytes.Buffer
			if err := r.Write(&text); err != nil {
				t.Fatal(err)
			}
			if (r.Err() != nil) != c.bad {
				t.Errorf("faults: %v, want %v\n%s", r.Err(), c.bad, text.String())
			}
			for _, code := range c.has {
				if !r.Findings.Has(code) {
					t.Errorf("%s is missing", code)
				}
			}
			for _, code := range c.none {
				if r.Findings.Has(code) {
					t.Errorf("%s is there", code)
				}
			}
			if want := map[bool]string{true: "demanded", false: "none"}[c.name == "mutual"]; r.TLCP.ClientCert != want {
				t.Errorf("certificate of the client: %s, want %s", r.TLCP.ClientCert, want)
			}
			for _, v := range r.TLS.Versions {
				if v.Taken {
					t.Errorf("it is said to take %s", v.Name)
				}
			}
			if c.name != "good" {
				return
			}
			for _, v := range r.TLCP.Suites {
				if v.Taken != strings.Contains(v.Name, "ECC_SM4_CBC_SM3") {
					t.Errorf("suite %s: taken %v", v.Name, v.Taken)
				}
			}
		})
	}
}

// serveGmtls runs handshakes of gmtls and reads what follows.
func serveGmtls(t *testing.T, config *gmtls.Config) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer raw.Close()
				defer func() { // some hellos are more than it bears
					if v := recover(); v != nil {
						t.Logf("gmtls panicked: %v", v)
					}
				}()
				_ = raw.SetDeadline(time.Now().Add(5 * time.Second)) // a connection that is gone says so in what follows
				c := gmtls.Server(raw, config)
				if c.Handshake() == nil {
					_, _ = c.Read(make([]byte, 1)) // until the client closes
				}
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}
