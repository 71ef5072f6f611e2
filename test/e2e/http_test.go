package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/test/testbed"
)

// bulk is how much one transfer carries.
func bulk() int64 {
	if testbed.Long() {
		return 1 << 30
	}
	return 64 << 20
}

// randomFile writes n random bytes and returns their digest.
func randomFile(t testing.TB, path string, n int64) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, h), rand.Reader, n); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func fileSum(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// nginx behind the gateway serves curl as if nothing stood between them.
func TestGCR002_M4_M8_NginxServesCurlOverEveryProtocol(t *testing.T) {
	t.Parallel()
	inWorlds(t, everywhere, func(t *testing.T, w *world) {
		n := peers(t).nginx
		mark := "h" + strings.ToLower(w.where.String())
		u := w.NewUser("curl")
		w.Grant(u, "browser", time.Time{}, filesID)
		b := w.signedIn(t, u, false, "files")
		cookie := "Cookie: " + b.Cookies(w.URL("files", "/"))
		host := w.app(filesID).Host()
		size := int64(8 << 20)
		if testbed.Long() {
			size = 256 << 20
		}
		big := filepath.Join(n.Root, mark+".bin")
		sum := randomFile(t, big, size)
		small := "hello from " + mark + "\n"
		if err := os.WriteFile(filepath.Join(n.Root, mark+".txt"), []byte(small), 0o600); err != nil {
			t.Fatal(err)
		}
		ctx := within(t, 3*time.Minute)
		if w.TLCP() {
			nginxOverTLCP(ctx, t, w, u, mark, small, big)
			return
		}
		curl := func(args ...string) string {
			t.Helper()
			out, err := w.Curl(ctx, w.v6, host, append([]string{"-H", cookie}, args...)...)
			if err != nil {
				t.Errorf("%v", err)
			}
			return out
		}
		for _, p := range []struct {
			name string
			args []string
			want string // protocol and version, as curl and the audit say them
			tls  string
		}{
			{"TLS 1.2 h1", []string{"--tlsv1.2", "--tls-max", "1.2", "--http1.1"}, "1.1", "tls1.2"},
			{"TLS 1.2 h2", []string{"--tlsv1.2", "--tls-max", "1.2", "--http2"}, "2", "tls1.2"},
			{"TLS 1.3 h1", []string{"--tlsv1.3", "--http1.1"}, "1.1", "tls1.3"},
			{"TLS 1.3 h2", []string{"--tlsv1.3", "--http2"}, "2", "tls1.3"},
		} {
			t.Run(p.name, func(t *testing.T) {
				tag := mark + strings.NewReplacer(" ", "", ".", "").Replace(p.name)
				get := func(args ...string) string { return curl(append(append([]string(nil), p.args...), args...)...) }
				if got := get("-w", "%{http_version} %{http_code}", w.URL("files", "/"+mark+".txt?"+tag)); got != small+p.want+" 200" {
					t.Errorf("GET: %q", got)
				}
				if got := get("-r", "6-9", "-w", " %{http_code}", w.URL("files", "/"+mark+".txt")); got != "from 206" {
					t.Errorf("range: %q", got)
				}
				got := get("-r", "0-4,6-9", "-D", "-", w.URL("files", "/"+mark+".txt"))
				if !strings.Contains(strings.ToLower(got), "multipart/byteranges") || !strings.Contains(got, "hello") || !strings.Contains(got, "from") {
					t.Errorf("two ranges: %q", got)
				}
				got = strings.ToLower(get("--head", w.URL("files", "/"+mark+".txt")))
				if !strings.Contains(got, fmt.Sprintf("content-length: %d\r\n", len(small))) || !strings.Contains(got, " 200") {
					t.Errorf("HEAD: %q", got)
				}
				down := filepath.Join(t.TempDir(), "down")
				if got := get("-o", down, "-w", "%{http_code}", w.URL("files", "/"+mark+".bin")); got != "200" || fileSum(t, down) != sum {
					t.Errorf("download: status %s, digest %s, want %s", got, fileSum(t, down), sum)
				}
				if got := get("-T", big, "-o", "/dev/null", "-w", "%{http_code}", w.URL("files", "/up/"+tag)); got != "201" {
					t.Errorf("upload: status %s", got)
				} else if s := fileSum(t, filepath.Join(n.Root, "up", tag)); s != sum {
					t.Errorf("upload: digest %s, want %s", s, sum)
				}
				w.GatewayAudit.Await(t, 1, "the request", func(r *audit.Record) bool {
					return r.Kind == audit.End && r.UserID == u.ID && strings.HasSuffix(r.Path, tag) && r.Protocol == p.tls && r.Suite != "" && r.AppID == filesID
				})
			})
		}
	})
}

// What tells nginx who asks comes from the gateway alone, however a client
// spells it. The fields know nothing of the protocol below: TLS alone.
func TestGCR002_M8_M60_IdentityHeadersAreTheGatewaysOnly(t *testing.T) {
	t.Parallel()
	inWorlds(t, []where{overTLS, {true, profile.Intl}}, func(t *testing.T, w *world) {
		n := peers(t).nginx
		u := w.NewUser("spoof")
		w.Grant(u, "browser", time.Time{}, filesID)
		b := w.signedIn(t, u, false, "files")
		cookie := "Cookie: own=1; " + b.Cookies(w.URL("files", "/")) + "; other=2"
		spoofs := []string{
			"X-Yumen-User: USR99999999", "x-yumen-user: USR99999999", "X-YUMEN-USER: USR99999999", "X-Yumen-Device: DEV99999999", "X-Yumen-Session: evil",
			"X_Yumen_User: USR99999999", "X-Yumen_User: USR99999999", "X.Yumen.User: USR99999999", "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: http", "X-Forwarded-Host: evil.test",
			"X-Real-IP: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Request-Id: evil", "Remote-User: evil", "X-Remote-User: evil", "Connection: X-Yumen-User, X-Forwarded-For",
		}
		for i, spoof := range spoofs {
			for _, proto := range []string{"--http1.1", "--http2"} {
				tag := fmt.Sprintf("spoof%d%s%s", i, proto, w.where.String())
				if _, err := w.Curl(within(t, time.Minute), w.v6, w.app(filesID).Host(), proto, "-H", cookie, "-H", spoof, "-o", "/dev/null", w.URL("files", "/"+tag)); err != nil {
					t.Errorf("%s: %v", spoof, err)
				}
			}
		}
		client := "127.0.0.1"
		if w.v6 {
			client = "::1"
		}
		reached := 0
		for _, s := range n.Seen() {
			if !strings.HasPrefix(s.URI, "/spoof") || !strings.HasSuffix(s.URI, w.where.String()) {
				continue
			}
			reached++
			all := fmt.Sprintf("%+v", s)
			if s.User != u.ID || s.Proto != "https" || s.ForwardedFor != client || strings.Contains(all, "evil") || strings.Contains(all, "6.6.6.6") || strings.Contains(all, "99999999") || s.RemoteUser != "" {
				t.Errorf("nginx saw %s", all)
			}
			if s.Session == "" || s.Request == "" || s.ForwardedHost == "" {
				t.Errorf("nginx is told too little: %s", all)
			}
			if strings.Contains(s.Cookie, "__Host-yumen") || !strings.Contains(s.Cookie, "own=1") || !strings.Contains(s.Cookie, "other=2") {
				t.Errorf("cookies that nginx saw: %q", s.Cookie)
			}
		}
		// Names that programs could read in two ways are refused; the others pass.
		if want := 2 * (len(spoofs) - 3); reached < want {
			t.Errorf("%d requests reached nginx, at least %d wanted", reached, want)
		}
		t.Logf("%d of %d requests reached nginx", reached, 2*len(spoofs))
	})
}
