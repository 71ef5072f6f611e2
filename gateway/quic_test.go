package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/internal/reason"
)

// http3 connects to the gateway's UDP port whatever the host.
func (w *world) http3(cert *tls.Certificate) *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.ca.RootPEM(keystore.TLSRoot))
	c := &tls.Config{RootCAs: pool}
	if cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	tr := &http3.Transport{TLSClientConfig: c, Dial: func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
		return quic.DialAddr(ctx, w.addr, c, q)
	}}
	w.t.Cleanup(func() { tr.Close() })
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

// HTTP/3 is on the same port, with the same certificates, decisions, cuts and
// audit; HTTP/1.1 says where it is.
func TestHTTP3OnTheSamePort(t *testing.T) {
	w := newWorld(t)
	w.start()
	tcp, udp := w.client(w.alice()), w.http3(w.alice())
	res, err := tcp.Get("https://" + host1 + "/")
	must(t, err)
	res.Body.Close()
	_, port, _ := strings.Cut(w.addr, ":")
	if got, want := res.Header.Get("Alt-Svc"), fmt.Sprintf(`h3=":%s"; ma=86400`, port); got != want {
		t.Errorf("Alt-Svc %q, want %q", got, want)
	}
	w.want(udp, "https://"+host1+"/", 200, host1+" for "+user)
	w.want(udp, "https://"+host2+"/", 403, "YM-") // no grant
	if status, err := w.get(w.http3(nil), "https://"+host1+"/"); status != 0 {
		t.Errorf("without a certificate: %d %s", status, err)
	}
	if status, err := w.get(w.http3(stranger(t)), "https://"+host1+"/"); status != 0 {
		t.Errorf("with a stranger's certificate: %d %s", status, err)
	}

	udp.Timeout = 0
	end := w.download(udp, "https://"+host1+"/big")
	w.lists(2, 2, user+" "+dev+" "+app2)
	start := time.Now()
	must(t, w.g.Reload())
	select {
	case err := <-end:
		if err == nil {
			t.Error("the download ended well")
		}
		t.Logf("revocation by reload to the client's reset: %v", time.Since(start))
	case <-time.After(5 * time.Second):
		t.Fatal("the download goes on without a grant")
	}
	w.want(udp, "https://"+host1+"/", 403, "YM-")
	must(t, w.stop())
	audit := w.auditText()
	for _, part := range []string{`"carrier":"h3"`, `"protocol":"tls1.3"`, `"suite":"TLS_AES_128_GCM_SHA256"`, reason.ClientCertAbsent.String()} {
		if !strings.Contains(audit, part) {
			t.Errorf("no %s in the audit", part)
		}
	}
}

// crypto.profile gm has no UDP socket, and says so of a file that wants one.
func TestGCR002_M5_NoQUICWithTheProfileGM(t *testing.T) {
	w := newWorld(t)
	w.config(oneApp + "crypto: {profile: gm}\n")
	w.start()
	if len(w.g.packets) != 0 {
		t.Errorf("%d UDP sockets", len(w.g.packets))
	}
	must(t, w.stop())
	path := w.config(oneApp + "crypto: {profile: gm}\nquic: {listen: [':8443']}\n")
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "quic.listen") {
		t.Errorf("loaded: %v", err)
	}
	path = w.config(oneApp + "quic: {disabled: true, listen: [':8443']}\n")
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "quic.listen") {
		t.Errorf("loaded: %v", err)
	}
}
