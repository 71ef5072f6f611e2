package interop

import (
	"context"
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

	"github.com/tjfoc/gmsm/gmtls"

	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/internal/watch"
	"github.com/yumen-zt/yumen/proxy/exchange"
	"github.com/yumen-zt/yumen/proxy/upstream"
)

// gmtlsListener serves what it accepts by gmtls.
type gmtlsListener struct {
	net.Listener
	config *gmtls.Config
}

func (l gmtlsListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return gmtls.Server(c, l.config), nil
}

// An application behind gmtls, reached as `tls.protocol: tlcp` says, over
// HTTP/1.1: gmtls knows no ALPN towards us.
func TestUpstreamBehindGmtls(t *testing.T) {
	s := newSite(t)
	peer := s.peerConfig()
	peer.Certificates = []gmtls.Certificate{s.server.signCert, s.server.encCert}
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		io.WriteString(w, r.Method+" "+r.Host+" "+string(body[:min(len(body), 4)]))
	}))
	web.Listener = gmtlsListener{web.Listener, peer}
	web.Start()
	defer web.Close()
	root := filepath.Join(t.TempDir(), "root.crt")
	foreign, err := lab.New(lab.Config{Iterations: 1})
	if err != nil {
		t.Fatal(err)
	}
	strange := filepath.Join(t.TempDir(), "strange.crt")
	if err := errors.Join(os.WriteFile(root, s.ca.RootPEM(keystore.TLCPRoot), 0o600), os.WriteFile(strange, foreign.RootPEM(keystore.TLCPRoot), 0o600)); err != nil {
		t.Fatal(err)
	}
	ask := func(method, ca, body string) (string, error) {
		reg, err := apps.New(apps.Config{Apps: []apps.AppConfig{{
			ID: "APP00000001", Hosts: []string{"app.test"}, Upstreams: []string{"https://" + web.Listener.Addr().String()}, AllowAddresses: []string{"127.0.0.0/8"},
			TLS: apps.TLSConfig{Protocol: "tlcp", CAFile: ca, ServerName: "gw.example.org"},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		e := upstream.New(upstream.Config{
			Dial: func(ctx context.Context, a *apps.App, network, addr string) (net.Conn, error) {
				return reg.Dial(ctx, a, network, addr)
			},
			AnswerTimeout: 10 * time.Second, IdleTimeout: time.Minute, Watch: watch.New(),
		})
		defer e.CloseIdle()
		app, x := reg.ID("APP00000001"), &exchange.Exchange{}
		x.Begin(t.Context(), time.Now())
		defer x.End()
		req := &upstream.Request{Method: method, Host: "app.test", Path: "/"}
		if body != "" {
			req.Body, req.Length = io.NopCloser(strings.NewReader(body)), int64(len(body))
		}
		u := app.Pick(time.Now(), "", "https")
		res, err := e.Do(x, app, u, req)
		u.Release()
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		out, err := io.ReadAll(res.Body)
		return string(out), err
	}
	if got, err := ask("GET", root, ""); err != nil || got != "GET app.test " {
		t.Errorf("GET: %q, %v", got, err)
	}
	if got, err := ask("POST", root, strings.Repeat("data", 20_000)); err != nil || got != "POST app.test data" {
		t.Errorf("POST of 80 kB: %q, %v", got, err)
	}
	var cert *apps.CertificateError
	if got, err := ask("GET", strange, ""); !errors.As(err, &cert) || cert.Ours || !strings.Contains(err.Error(), "signing certificate") {
		t.Errorf("under another root: %q, %v", got, err)
	}
}
