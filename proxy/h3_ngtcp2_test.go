package proxy

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ngtcp2's client (Debian's ngtcp2-client) is a stack that shares nothing with
// quic-go: it downloads and uploads with loss, key updates and changes of its
// address.
func TestHTTP3WithNgtcp2(t *testing.T) {
	if _, err := exec.LookPath("gtlsclient"); err != nil {
		t.Skip("gtlsclient is missing (apt-get install ngtcp2-client)")
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow": // for 0.6 s
			for part := range 60 {
				_, _ = w.Write(big[part*1000 : (part+1)*1000])
				w.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		case "/up":
			b, err := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%x %v", sha256.Sum256(b), err)
		default:
			_, _ = w.Write(big)
		}
	}), with(func(c *fixtureConfig) { c.app.Hosts = append(c.app.Hosts, "localhost") })) // the only name that it sends
	_, port, _ := net.SplitHostPort(f.quicPort())
	body := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(body, big, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		want       []byte
		args       []string
	}{
		{"download", "/big", big, nil},
		{"loss", "/big", big, []string{"--tx-loss=0.03", "--rx-loss=0.03", "--initial-rtt=20ms"}},
		{"key update", "/slow", big[:60000], []string{"--key-update=100ms"}},
		{"NAT rebinding", "/slow", big[:60000], []string{"--change-local-addr=50ms", "--nat-rebinding", "--delay-stream=200ms"}},
		{"migration", "/slow", big[:60000], []string{"--change-local-addr=100ms"}},
		{"upload", "/up", fmt.Appendf(nil, "%x <nil>", sha256.Sum256(big)), []string{"-d", body, "-m", "POST"}},
		{"many", "/big", big, []string{"-n", "20"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			args := append([]string{"-q", "--exit-on-all-streams-close", "--timeout=5s", "--download=" + dir}, c.args...)
			cmd := exec.CommandContext(t.Context(), "gtlsclient", append(args, "localhost", port, "https://localhost:"+port+c.path)...)
			start := time.Now()
			out, err := cmd.CombinedOutput()
			got, rerr := os.ReadFile(filepath.Join(dir, strings.Trim(c.path, "/")))
			if err != nil || rerr != nil || !bytes.Equal(got, c.want) {
				t.Errorf("%v, %v, %d bytes %.200q, want %d\n%.2000s", err, rerr, len(got), got, len(c.want), out)
			}
			t.Logf("%d bytes in %v", len(got), time.Since(start))
		})
	}
}
