package gateway

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
	"golang.org/x/net/http2"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// tlcpPair issues a TLCP pair for these hosts and URIs.
func (w *world) tlcpPair(hosts []string, uris ...string) [2]tlcp.Certificate {
	w.t.Helper()
	dir := filepath.Join(w.dir, "ca")
	must(w.t, w.ca.Save(dir, pass))
	store, err := keystore.Open(dir, pass)
	must(w.t, err)
	signer, err := store.Signer("tlcp-ca")
	must(w.t, err)
	root, err := keystore.ParseChain(w.ca.RootPEM(keystore.TLCPRoot))
	must(w.t, err)
	var pair [2]tlcp.Certificate
	for i, usage := range []smx509.KeyUsage{smx509.KeyUsageDigitalSignature, smx509.KeyUsageKeyEncipherment | smx509.KeyUsageKeyAgreement} {
		key, err := sm2.GenerateKey(rand.Reader)
		must(w.t, err)
		c := &smx509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "pair"}, DNSNames: hosts,
			NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: usage,
			ExtKeyUsage: []smx509.ExtKeyUsage{smx509.ExtKeyUsageServerAuth, smx509.ExtKeyUsageClientAuth},
		}
		for _, s := range uris {
			u, err := url.Parse(s)
			must(w.t, err)
			c.URIs = append(c.URIs, u)
		}
		der, err := smx509.CreateCertificate(rand.Reader, c, root[0], key.Public(), signer)
		must(w.t, err)
		cert, err := smx509.ParseCertificate(der)
		must(w.t, err)
		pair[i] = tlcp.Certificate{Chain: []*smx509.Certificate{cert}, Key: key}
	}
	return pair
}

// tlcpAlice is the user's TLCP pair on her device.
func (w *world) tlcpAlice() *tlcp.Pair {
	w.t.Helper()
	c := w.tlcpPair(nil, "urn:yumen:device:"+dev, "urn:yumen:user:"+user)
	pair, err := tlcp.NewPair(c[0], c[1])
	must(w.t, err)
	return pair
}

// tlcpDial returns a dialer to the gateway, whatever the address.
func (w *world) tlcpDial(pair *tlcp.Pair, protos ...string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	w.t.Helper()
	roots, err := w.keys.Root(keystore.TLCPRoot)
	must(w.t, err)
	cache := tlcp.NewLRUSessionCache(16)
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		c := &tlcp.Config{RootCAs: roots, ServerName: host, NextProtos: protos, SessionCache: cache}
		if pair != nil {
			c.Certificates = []*tlcp.Pair{pair}
		}
		return (&tlcp.Dialer{Config: c}).DialContext(ctx, network, w.addr)
	}
}

// tlcpClient is a client of HTTP/1.1 or HTTP/2 over TLCP.
func (w *world) tlcpClient(pair *tlcp.Pair, h2 bool) *http.Client {
	if h2 {
		dial := w.tlcpDial(pair, "h2")
		tr := &http2.Transport{DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
			return dial(ctx, network, addr)
		}}
		w.t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	tr := &http.Transport{DialTLSContext: w.tlcpDial(pair, "http/1.1")}
	w.clients = append(w.clients, tr)
	return &http.Client{Transport: tr}
}

func TestGCR002_M5_RequestsOverTLCP(t *testing.T) {
	w := newWorld(t)
	w.start()
	alice := w.tlcpAlice()
	for _, h2 := range []bool{false, true} {
		c := w.tlcpClient(alice, h2)
		r, err := c.Get("https://" + host1 + "/")
		if err != nil {
			t.Fatalf("h2 %v: %v", h2, err)
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if want := 1 + map[bool]int{true: 1}[h2]; err != nil || r.StatusCode != 200 || r.ProtoMajor != want || !strings.Contains(string(body), user) {
			t.Errorf("h2 %v: %s %d %q %v", h2, r.Proto, r.StatusCode, body, err)
		}
	}
	if got := w.auditText(); !strings.Contains(got, `"protocol":"tlcp","suite":"ECDHE_SM4_GCM_SM3"`) {
		t.Errorf("the audit does not tell the protocol: %s", got)
	}
}

func (w *world) auditText() string {
	w.t.Helper()
	raw, err := os.ReadFile(filepath.Join(w.dir, "state", "audit.jsonl"))
	must(w.t, err)
	return string(raw)
}
