package gateway

import (
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/keystore"
)

// A client certificate on a revocation list opens nothing, over TLS and over
// TLCP; a reload that brings the list ends what the certificate has opened.
func TestGCR002_M3_RevokedClientCertificates(t *testing.T) {
	w := newWorld(t)
	list := func(revoked ...*big.Int) {
		var out []byte
		for _, root := range []string{keystore.TLSRoot, keystore.TLCPRoot} {
			der, err := w.ca.RevocationList(root, revoked...)
			must(t, err)
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
		}
		w.write("revoked.crl", string(out), 0o644)
	}
	list()
	w.config(oneApp + "revocation: {files: [revoked.crl], required: true}\n")
	w.start()
	alice, pair := w.alice(), w.tlcpAlice()
	leaf, err := smx509.ParseCertificate(alice.Certificate[0])
	must(t, err)
	byTLS, byTLCP := w.client(alice), w.tlcpClient(pair, false)
	w.want(byTLS, "https://"+host1+"/", 200, user)
	w.want(byTLCP, "https://"+host1+"/", 200, user)

	ends := map[string]<-chan error{"tls": w.download(byTLS, "https://"+host1+"/big"), "tlcp": w.download(byTLCP, "https://"+host1+"/big")}
	list(leaf.SerialNumber, pair.SignLeaf().SerialNumber)
	must(t, w.admin("POST", "/reload", nil, nil))
	for name, end := range ends {
		select {
		case err := <-end:
			if err == nil {
				t.Errorf("%s: the download ended well", name)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the download goes on", name)
		}
	}
	for name, c := range map[string]*http.Client{"tls": w.client(alice), "tlcp": w.tlcpClient(pair, false), "tls, a session resumed": byTLS, "tlcp, a session resumed": byTLCP} {
		c.CloseIdleConnections()
		if r, err := c.Get("https://" + host1 + "/"); err == nil {
			b, _ := io.ReadAll(r.Body)
			r.Body.Close()
			t.Errorf("%s: a revoked certificate is served: %d %s", name, r.StatusCode, b)
		}
	}
	w.want(w.client(w.alice()), "https://"+host1+"/", 200, user) // a renewed one

	// A list of another authority is refused, and the old ones stay.
	w.write("revoked.crl", "nonsense", 0o644)
	if err := w.admin("POST", "/reload", nil, nil); err == nil || !strings.Contains(err.Error(), "revocation.files[0]") {
		t.Errorf("a bad list: %v", err)
	}
}
