package upstream

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/internal/watch"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

// tlcpSite is an application that speaks TLCP, and the files of its client.
type tlcpSite struct {
	ca   *lab.CA
	web  *httptest.Server
	root string // PEM file
	pair apps.TLSConfig
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// files writes chain and key of a store's key and returns their paths.
func files(t *testing.T, s *keystore.Store, name string) (cert, key string) {
	t.Helper()
	dir := t.TempDir()
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	k := must(s.Signer(name)).(*sm2.PrivateKey)
	block := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(smx509.MarshalPKCS8PrivateKey(k))})
	if err := errors.Join(os.WriteFile(cert, keystore.EncodeChain(must(s.Chain(name))...), 0o600), os.WriteFile(key, block, 0o600)); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func newTLCPSite(t *testing.T, ca *lab.CA, id certid.Identity, host string) *tlcpSite {
	t.Helper()
	s := &tlcpSite{ca: ca, root: filepath.Join(t.TempDir(), "root.crt")}
	keys := must(ca.Party(t.TempDir()+"/app", []byte("x"), id, []string{host, "127.0.0.1"}))
	if err := os.WriteFile(s.root, ca.RootPEM(keystore.TLCPRoot), 0o600); err != nil {
		t.Fatal(err)
	}
	s.web = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto+" "+r.Host) }))
	s.web.Config.Protocols = new(http.Protocols)
	s.web.Config.Protocols.SetHTTP1(true)
	s.web.Config.Protocols.SetUnencryptedHTTP2(true) // net/http takes TLCP for no encryption
	s.web.Listener = tlcp.NewListener(s.web.Listener, &tlcp.Config{
		Certificates: []*tlcp.Pair{must(keys.TLCPPair())}, ClientAuth: tlcp.VerifyClientCertIfGiven, ClientCAs: must(keys.Root(keystore.TLCPRoot)),
		NextProtos: []string{"h2", "http/1.1"},
		VerifyConnection: func(c tlcp.ConnectionState) error {
			if host == "mutual.test" && c.PeerSign == nil {
				return errors.New("a client certificate is wanted")
			}
			return nil
		},
	})
	s.web.Start()
	t.Cleanup(s.web.Close)
	s.pair = apps.TLSConfig{Protocol: "tlcp", CAFile: s.root, ServerName: host}
	gw := must(ca.Party(t.TempDir()+"/gw", []byte("x"), certid.Identity{Gateway: "GW000000001"}, nil))
	s.pair.SignCertFile, s.pair.SignKeyFile = files(t, gw, keystore.TLCPSign)
	s.pair.EncCertFile, s.pair.EncKeyFile = files(t, gw, keystore.TLCPEnc)
	return s
}

// fetch asks the application at addr, with tls as its security.
func fetch(t *testing.T, addr string, http2 bool, conf apps.TLSConfig) (string, error) {
	t.Helper()
	reg, err := apps.New(apps.Config{Apps: []apps.AppConfig{{
		ID: "APP00000001", Hosts: []string{"app.test"}, Upstreams: []string{"https://" + addr}, AllowAddresses: []string{"127.0.0.0/8"}, HTTP2: http2, TLS: conf,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	dials := 0
	e := New(Config{
		Dial: func(ctx context.Context, a *apps.App, network, addr string) (net.Conn, error) {
			dials++
			return reg.Dial(ctx, a, network, addr)
		},
		AnswerTimeout: 10 * time.Second, IdleTimeout: time.Minute, Watch: watch.New(),
	})
	defer e.CloseIdle()
	app := reg.ID("APP00000001")
	x := &exchange.Exchange{}
	x.Begin(t.Context(), time.Now())
	defer x.End()
	var out string
	for range 2 { // the second over the connection of the first
		u := app.Pick(time.Now(), "", "https")
		res, err := e.Do(x, app, u, &Request{Method: "GET", Host: "app.test", Path: "/"})
		u.Release()
		if err != nil {
			return "", err
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			return "", err
		}
		out = string(body)
	}
	if dials != 1 {
		t.Errorf("%d connections for two requests, one after the other", dials)
	}
	return out, nil
}

func TestUpstreamByTLCP(t *testing.T) {
	ca, foreign := must(lab.New(lab.Config{Iterations: 1})), must(lab.New(lab.Config{Iterations: 1}))
	id := certid.Identity{App: "APP00000001"}
	site, mutual := newTLCPSite(t, ca, id, "app.test"), newTLCPSite(t, ca, id, "mutual.test")
	stranger := newTLCPSite(t, foreign, id, "mutual.test")
	plain := httptest.NewUnstartedServer(http.NotFoundHandler())
	plain.TLS = &tls.Config{}
	plain.StartTLS()
	t.Cleanup(plain.Close)
	anonymous := func(s *tlcpSite) apps.TLSConfig {
		return apps.TLSConfig{Protocol: "tlcp", CAFile: s.root, ServerName: s.pair.ServerName}
	}
	swapped := mutual.pair
	swapped.SignCertFile, swapped.SignKeyFile, swapped.EncCertFile, swapped.EncKeyFile = swapped.EncCertFile, swapped.EncKeyFile, swapped.SignCertFile, swapped.SignKeyFile
	other := stranger.pair // the stranger's pair, the site's root
	other.CAFile = mutual.root
	wrongName := anonymous(site)
	wrongName.ServerName = "other.test"
	for name, c := range map[string]struct {
		addr  string
		http2 bool
		conf  apps.TLSConfig
		body  string
		want  []string // of the error
		ours  bool
	}{
		"h1":                         {addr: site.web.Listener.Addr().String(), conf: anonymous(site), body: "HTTP/1.1 app.test"},
		"h2":                         {addr: site.web.Listener.Addr().String(), http2: true, conf: anonymous(site), body: "HTTP/2.0 app.test"},
		"mutual":                     {addr: mutual.web.Listener.Addr().String(), conf: mutual.pair, body: "HTTP/1.1 app.test"},
		"mutual h2":                  {addr: mutual.web.Listener.Addr().String(), http2: true, conf: mutual.pair, body: "HTTP/2.0 app.test"},
		"no client pair":             {addr: mutual.web.Listener.Addr().String(), conf: anonymous(mutual), want: []string{"refuses the gateway's certificate", "APP00000001"}, ours: true},
		"a pair of another root":     {addr: mutual.web.Listener.Addr().String(), conf: other, want: []string{"refuses the gateway's certificate", "unknown_ca"}, ours: true},
		"another root":               {addr: site.web.Listener.Addr().String(), conf: anonymous(stranger), want: []string{"its certificate is not good", "signing certificate", "ca_file"}},
		"another name":               {addr: site.web.Listener.Addr().String(), conf: wrongName, want: []string{"its certificate is not good", "signing certificate", "server_name"}},
		"an upstream that knows TLS": {addr: plain.Listener.Addr().String(), conf: anonymous(site), want: []string{"speaks no TLCP"}},
	} {
		t.Run(name, func(t *testing.T) {
			body, err := fetch(t, c.addr, c.http2, c.conf)
			if c.want == nil {
				if err != nil || body != c.body {
					t.Errorf("got %q, %v; want %q", body, err, c.body)
				}
				return
			}
			var fault *Error
			if !errors.As(err, &fault) {
				t.Fatalf("got %q, %v", body, err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("got %v, want %q", err, w)
				}
			}
			var cert *apps.CertificateError
			if errors.As(err, &cert) && (fault.Why != reason.UpstreamUnreachable || cert.Ours != c.ours) {
				t.Errorf("reason %s, ours %v", fault.Why, cert.Ours)
			}
		})
	}
	// What cannot work is said when the configuration is read.
	for name, c := range map[string]struct {
		conf apps.TLSConfig
		want string
	}{
		"no root":          {apps.TLSConfig{Protocol: "tlcp"}, "apps[0].tls.ca_file: missing"},
		"half a pair":      {apps.TLSConfig{Protocol: "tlcp", CAFile: site.root, SignCertFile: "a", SignKeyFile: "b"}, "go together"},
		"pair for TLS":     {apps.TLSConfig{SignCertFile: "a"}, "are for protocol: tlcp"},
		"another protocol": {apps.TLSConfig{Protocol: "gm"}, "apps[0].tls.protocol"},
		"swapped":          {swapped, "exchanged"},
	} {
		_, err := apps.New(apps.Config{Apps: []apps.AppConfig{{ID: "APP00000001", Hosts: []string{"app.test"}, Upstreams: []string{"https://127.0.0.1:1"}, TLS: c.conf}}})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
