package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tjfoc/gmsm/gmtls"
	tjx509 "github.com/tjfoc/gmsm/x509"

	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/test/testbed"
)

// nginxOverTLCP is what curl does over TLS: pages, ranges, transfers, by our
// client with h1 and h2, and a page by gmtls.
func nginxOverTLCP(ctx context.Context, t *testing.T, w *world, u *testbed.User, mark, small, big string) {
	sum := fileSum(t, big)
	for _, h2 := range []bool{false, true} {
		name, proto := "TLCP h1", "HTTP/1.1"
		if h2 {
			name, proto = "TLCP h2", "HTTP/2.0"
		}
		t.Run(name, func(t *testing.T) {
			tag := mark + strings.ReplaceAll(name, " ", "")
			b := w.signedIn(t, u, h2, "files")
			do := func(method, path, bytesOf string, body io.Reader, to io.Writer) *http.Response {
				t.Helper()
				r, err := http.NewRequestWithContext(ctx, method, w.URL("files", path), body)
				if err != nil {
					t.Fatal(err)
				}
				if bytesOf != "" {
					r.Header.Set("Range", "bytes="+bytesOf)
				}
				resp, err := b.Client.Do(r)
				if err != nil {
					t.Fatalf("%s %s: %v", method, path, err)
				}
				defer resp.Body.Close()
				if _, err := io.Copy(to, resp.Body); err != nil || resp.Proto != proto {
					t.Errorf("%s %s over %s: %v", method, path, resp.Proto, err)
				}
				return resp
			}
			var got bytes.Buffer
			if r := do("GET", "/"+mark+".txt?"+tag, "", nil, &got); r.StatusCode != 200 || got.String() != small {
				t.Errorf("GET: %d %q", r.StatusCode, got.String())
			}
			got.Reset()
			if r := do("GET", "/"+mark+".txt", "6-9", nil, &got); r.StatusCode != 206 || got.String() != "from" {
				t.Errorf("range: %d %q", r.StatusCode, got.String())
			}
			if r := do("HEAD", "/"+mark+".txt", "", nil, io.Discard); r.StatusCode != 200 || r.ContentLength != int64(len(small)) {
				t.Errorf("HEAD: %d, %d bytes", r.StatusCode, r.ContentLength)
			}
			h := sha256.New()
			if r := do("GET", "/"+mark+".bin", "", nil, h); r.StatusCode != 200 || hex.EncodeToString(h.Sum(nil)) != sum {
				t.Errorf("download: status %d, digest %x, want %s", r.StatusCode, h.Sum(nil), sum)
			}
			f, err := os.Open(big)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if r := do("PUT", "/up/"+tag, "", f, io.Discard); r.StatusCode != 201 {
				t.Errorf("upload: status %d", r.StatusCode)
			} else if s := fileSum(t, filepath.Join(peers(t).nginx.Root, "up", tag)); s != sum {
				t.Errorf("upload: digest %s, want %s", s, sum)
			}
			seenOverTLCP(t, w, u, tag, "ECC_SM4_GCM_SM3")
		})
	}
	t.Run("gmtls", func(t *testing.T) {
		pem, err := os.ReadFile(w.TLCPRootFile)
		if err != nil {
			t.Fatal(err)
		}
		roots := tjx509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			t.Fatal("the root was not taken")
		}
		raw, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", testbed.Loopback(w.v6, w.Port))
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		if err := raw.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		host := w.app(filesID).Host()
		c := gmtls.Client(raw, &gmtls.Config{
			GMSupport: &gmtls.GMSupport{}, CipherSuites: []uint16{0xE013}, SessionTicketsDisabled: true, RootCAs: roots, ServerName: host,
		})
		cookies, tag := w.signedIn(t, u, false, "files").Cookies(w.URL("files", "/")), mark+".txt"
		fmt.Fprintf(c, "GET /%s HTTP/1.1\r\nHost: %s:%d\r\nCookie: %s\r\n\r\n", tag, host, w.Port, cookies)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || string(body) != small {
			t.Errorf("%d %q, %v", resp.StatusCode, body, err)
		}
		seenOverTLCP(t, w, u, tag, "ECC_SM4_CBC_SM3")
	})
}

// seenOverTLCP waits for the record of a request in the gateway's audit.
func seenOverTLCP(t *testing.T, w *world, u *testbed.User, tag, suite string) {
	t.Helper()
	w.GatewayAudit.Await(t, 1, "the request over "+suite, func(r *audit.Record) bool {
		return r.Kind == audit.End && r.UserID == u.ID && strings.HasSuffix(r.Path, tag) && r.Protocol == "tlcp" && r.Suite == suite && r.AppID == filesID
	})
}

// Every link of a site runs over the protocol that the configuration says, and
// status and audit name it: the gateway's and the agent's to the control
// center, the tunnel, the browser's.
func TestGCR002_M5_M71_EveryLinkOverItsProtocol(t *testing.T) {
	t.Parallel()
	inWorlds(t, append(everywhere, gmOnly), func(t *testing.T, w *world) {
		forward := func(suite string) bool { return !w.TLCP() || suite == "ECDHE_SM4_GCM_SM3" }
		gw, err := w.Status()
		if err != nil || gw.Control == nil || !w.protocol(gw.Control.Protocol) || !forward(gw.Control.Suite) {
			t.Errorf("link of the gateway: %+v, %v", gw.Control, err)
		}
		u, b, a := w.newcomer(t, "links", time.Time{})
		st, err := a.Status()
		if err != nil || !w.protocol(st.Carrier) || !w.protocol(st.ControlProtocol) || !forward(st.Suite) || !forward(st.ControlSuite) {
			t.Errorf("links of the agent: tunnel %s %s, control center %s %s, %v", st.Carrier, st.Suite, st.ControlProtocol, st.ControlSuite, err)
		}
		if p, err := b.Get(within(t, time.Minute), w.URL("web", "/hello")); err != nil || p.Status != 200 {
			t.Errorf("browser: %+v, %v", p, err)
		}
		c, err := testbed.DialSOCKS(within(t, time.Minute), a.SOCKS5, w.app(echoID).Address())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		seen := map[string]string{}
		w.GatewayAudit.Await(t, 2, "a request and a flow", func(r *audit.Record) bool {
			if r.Kind != audit.End || r.UserID != u.ID {
				return false
			}
			if !w.protocol(r.Protocol) || r.Suite == "" || r.Carrier == "tcp" && !forward(r.Suite) {
				t.Errorf("audit: %s over %s %s", r.Carrier, r.Protocol, r.Suite)
			}
			seen[r.Carrier] = r.Protocol + " " + r.Suite
			return true
		})
		t.Logf("control links %s %s and %s %s, tunnel %s %s, audit %v",
			gw.Control.Protocol, gw.Control.Suite, st.ControlProtocol, st.ControlSuite, st.Carrier, st.Suite, seen)
	})
}
