package carrier

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server accepts TLS connections with cfg and hands them to serve.
func server(t *testing.T, cfg *tls.Config, serve func(net.Conn)) (addr string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AddCert(cert)
	cfg.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if c.(*tls.Conn).Handshake() == nil && serve != nil {
					serve(c)
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String(), roots
}

func TestGCR002_M71_DialDemandsTheGatewayAndItsProtocol(t *testing.T) {
	for _, tt := range []struct {
		name  string
		cfg   *tls.Config
		trust bool
		want  string // part of the error; empty: none
	}{
		{"the gateway", &tls.Config{NextProtos: []string{ALPN}}, true, ""},
		{"no ALPN", &tls.Config{}, true, "does not speak yumen/1"},
		{"another protocol", &tls.Config{NextProtos: []string{"h2"}}, true, "no application protocol"},
		{"TLS 1.1", &tls.Config{NextProtos: []string{ALPN}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, true, "protocol version"},
		{"a stranger", &tls.Config{NextProtos: []string{ALPN}}, false, "certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr, roots := server(t, tt.cfg, nil)
			if !tt.trust {
				roots = x509.NewCertPool()
			}
			c, err := (&TLS{Config: &tls.Config{RootCAs: roots}}).Dial(t.Context(), addr)
			if err == nil {
				defer c.Close()
				if c.Peer() == nil {
					t.Error("no peer certificate")
				}
			}
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// A gateway that says nothing, nonsense, or goodbye does not keep the agent.
func TestConnectEndsWhateverTheGatewaySays(t *testing.T) {
	hello := func(wire.TunnelHello) ([]byte, error) { return []byte("{}"), nil }
	for name, tt := range map[string]struct {
		say  []byte
		want func(error) bool
	}{
		"nothing":        {nil, func(err error) bool { return err != nil }},
		"nonsense":       {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), func(err error) bool { return err != nil }},
		"unsealed reply": {[]byte("\x06\x00\x00\x03\x00\x00\x00\x00\x05{}"), func(err error) bool { return err != nil }},
		"goodbye": {[]byte("\x04\x00\x00\x02\x00\x00\x00\x00\x02\xbd"), func(err error) bool {
			var re *RefusedError
			return errors.As(err, &re) && re.Reason == reason.TunnelLimit
		}},
	} {
		t.Run(name, func(t *testing.T) {
			addr, roots := server(t, &tls.Config{NextProtos: []string{ALPN}}, func(c net.Conn) {
				b := make([]byte, 64)
				_, _ = c.Read(b)
				_, _ = c.Write(tt.say)
				_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				for {
					if _, err := c.Read(b); err != nil {
						return
					}
				}
			})
			conn, err := (&TLS{Config: &tls.Config{RootCAs: roots}}).Dial(t.Context(), addr)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Connect(t.Context(), conn, ClientConfig{Hello: hello}); !tt.want(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}
