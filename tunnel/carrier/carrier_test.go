package carrier

import (
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pki is one party of a laboratory: gateway and agent at once.
var pki = sync.OnceValues(func() (*lab.CA, error) { return lab.New(lab.Config{Iterations: 1}) })

func party(t *testing.T, id certid.Identity) *keystore.Store {
	t.Helper()
	ca, err := pki()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ca.Party(t.TempDir()+"/keys", []byte("x"), id, []string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// server accepts connections of one protocol with the keys of a gateway and
// hands them to serve.
func server(t *testing.T, byTLCP bool, cfg *tls.Config, serve func(net.Conn)) (addr string) {
	t.Helper()
	keys := party(t, certid.Identity{Gateway: "GW000000001"})
	var l net.Listener
	var err error
	if byTLCP {
		pair, e1 := keys.TLCPPair()
		roots, e2 := keys.Root(keystore.TLCPRoot)
		l, err = tlcp.Listen("tcp", "127.0.0.1:0", &tlcp.Config{
			Certificates: []*tlcp.Pair{pair}, ClientAuth: tlcp.RequireAndVerifyClientCert, ClientCAs: roots, NextProtos: cfg.NextProtos,
		})
		err = errors.Join(e1, e2, err)
	} else {
		cert, e1 := keys.TLSCertificate(keystore.TLS)
		cfg.Certificates = []tls.Certificate{cert}
		l, err = tls.Listen("tcp", "127.0.0.1:0", cfg)
		err = errors.Join(e1, err)
	}
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
				if c.(interface{ Handshake() error }).Handshake() == nil && serve != nil {
					serve(c)
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

// dialer returns the agent's dialer to the gateway named.
func dialer(t *testing.T, byTLCP bool, gateway string) *TCP {
	t.Helper()
	c, err := channel.New(channel.Config{
		Keys: party(t, certid.Identity{Agent: "AGT00000001"}), TLCP: byTLCP, AnyName: true, ALPN: []string{ALPN},
		Peer: func(id certid.Identity) error {
			if id.Gateway != gateway {
				return errors.New("another gateway's certificate")
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &TCP{Channel: c}
}

func TestGCR002_M71_DialDemandsTheGatewayAndItsProtocol(t *testing.T) {
	ours, strange := "GW000000001", "GW000000002"
	for _, tt := range []struct {
		name    string
		byTLCP  bool
		cfg     *tls.Config
		gateway string
		suite   string
		want    string // part of the error; empty: none
	}{
		{"the gateway", false, &tls.Config{NextProtos: []string{ALPN}}, ours, "TLS_", ""},
		{"no ALPN", false, &tls.Config{}, ours, "", "does not speak yumen/1"},
		{"another protocol", false, &tls.Config{NextProtos: []string{"h2"}}, ours, "", "no application protocol"},
		{"TLS 1.1", false, &tls.Config{NextProtos: []string{ALPN}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, ours, "", "protocol version"},
		{"a stranger", false, &tls.Config{NextProtos: []string{ALPN}}, strange, "", "certificate"},
		{"the gateway by TLCP", true, &tls.Config{NextProtos: []string{ALPN}}, ours, "ECDHE_SM4_GCM_SM3", ""},
		{"no ALPN by TLCP", true, &tls.Config{}, ours, "", "does not speak yumen/1"},
		{"another protocol by TLCP", true, &tls.Config{NextProtos: []string{"h2"}}, ours, "", "no_application_protocol"},
		{"a stranger by TLCP", true, &tls.Config{NextProtos: []string{ALPN}}, strange, "", "another gateway's certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := dialer(t, tt.byTLCP, tt.gateway).Dial(t.Context(), server(t, tt.byTLCP, tt.cfg, nil))
			if err == nil {
				defer c.Close()
				if s := c.State(); s.Peer == nil || s.ALPN != ALPN || !strings.HasPrefix(s.Suite, tt.suite) {
					t.Errorf("state %+v", s)
				}
			}
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// A carrier never becomes another one: a gateway that speaks only TLS is an
// error for TLCP, and the other way round.
func TestCarrierDoesNotFallBack(t *testing.T) {
	for _, byTLCP := range []bool{true, false} {
		reached := make(chan struct{}, 1)
		addr := server(t, !byTLCP, &tls.Config{NextProtos: []string{ALPN}}, func(net.Conn) { reached <- struct{}{} })
		c, err := dialer(t, byTLCP, "GW000000001").Dial(t.Context(), addr)
		if err == nil {
			c.Close()
			t.Fatal("a carrier of the other protocol")
		}
		want := "refuses TLS"
		if byTLCP {
			want = "speaks no TLCP"
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("TLCP %v: %v, want %q", byTLCP, err, want)
		}
		select {
		case <-reached:
			t.Error("the gateway saw a handshake")
		default:
		}
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
			addr := server(t, true, &tls.Config{NextProtos: []string{ALPN}}, func(c net.Conn) {
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
			conn, err := dialer(t, true, "GW000000001").Dial(t.Context(), addr)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Connect(t.Context(), conn, ClientConfig{Hello: hello}); !tt.want(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}
