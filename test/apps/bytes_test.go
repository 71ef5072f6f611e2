package apps

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/test/testbed"
)

// noise is n reproducible bytes.
func noise(seed uint64, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}), n)
}

// newBytes starts an application that takes and gives streams of any size.
func newBytes(o testbed.Owner) string {
	o.Helper()
	at := testbed.Loopback(false, testbed.Port(o))
	ln, err := net.Listen("tcp", at)
	if err != nil {
		o.Fatalf("%v", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /whoami", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get("X-Yumen-User")) })
	mux.HandleFunc("GET /noise", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.FormValue("n"), 10, 64)
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.Copy(w, noise(7, n)) // the client may go
	})
	mux.HandleFunc("PUT /digest", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		fmt.Fprintf(w, "%d %x %v", n, h.Sum(nil), err)
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ln) }() // ends by Close
	o.Cleanup(func() { s.Close(); <-done })
	return "http://" + at
}

// resident returns the resident memory of a process in MiB.
func resident(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "VmRSS:" {
			n, _ := strconv.Atoi(f[1])
			return n >> 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// Uploads and downloads of any size, with equal checksums, take no memory that
// grows with them.
func TestTransfersTakeConstantMemory(t *testing.T) {
	w := site(t)
	size := int64(128 << 20)
	if testbed.Long() {
		size = 4 << 30
	}
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2=%v", h2), func(t *testing.T) {
			u := w.NewUser(fmt.Sprintf("bytes%v", h2))
			w.Grant(u, "browser", time.Time{}, bytesID)
			b := w.NewBrowser(t, h2, false)
			ctx := within(t, 10*time.Minute)
			if _, err := b.SignIn(ctx, w.URL("bytes", "/whoami"), u); err != nil {
				t.Fatal(err)
			}
			before := resident(t, w.Gateway.PID())
			most := before
			stop, watched := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(watched)
				for tick := time.NewTicker(50 * time.Millisecond); ; {
					select {
					case <-stop:
						tick.Stop()
						return
					case <-tick.C:
						most = max(most, resident(t, w.Gateway.PID()))
					}
				}
			}()
			want := sha256.New()
			if _, err := io.Copy(want, noise(7, size)); err != nil {
				t.Fatal(err)
			}
			sum := hex.EncodeToString(want.Sum(nil))

			start := time.Now()
			req, err := http.NewRequestWithContext(ctx, "GET", w.URL("bytes", "/noise?n="+strconv.FormatInt(size, 10)), nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := b.Client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got := sha256.New()
			n, err := io.Copy(got, res.Body)
			res.Body.Close()
			if err != nil || n != size || hex.EncodeToString(got.Sum(nil)) != sum {
				t.Errorf("down: %d of %d bytes, %x, %v", n, size, got.Sum(nil), err)
			}
			down := time.Since(start)

			start = time.Now()
			if req, err = http.NewRequestWithContext(ctx, "PUT", w.URL("bytes", "/digest"), noise(7, size)); err != nil {
				t.Fatal(err)
			}
			if res, err = b.Client.Do(req); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(res.Body)
			res.Body.Close()
			if want := fmt.Sprintf("%d %s <nil>", size, sum); err != nil || string(answer) != want {
				t.Errorf("up: %q, %v, want %q", answer, err, want)
			}
			close(stop)
			<-watched
			t.Logf("%d MiB down in %v, up in %v; resident memory %d MiB, at most %d", size>>20, down.Round(time.Millisecond), time.Since(start).Round(time.Millisecond), before, most)
			if most > before+64 {
				t.Errorf("the gateway grew from %d to %d MiB", before, most)
			}
		})
	}
}
