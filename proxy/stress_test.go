package proxy

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// TestStressEndsWhereItBegan mixes what clients, upstreams and access can do at
// the wrong moment: cancellations, cuts, slow readers, uploads that are given up,
// answers that come early or break off. No client may see another's bytes, and at
// the end nothing is left but the pool.
func TestStressEndsWhereItBegan(t *testing.T) {
	for _, engine := range []string{HTTP2Own, HTTP2Reference} {
		t.Run(engine, func(t *testing.T) { stress(t, engine) })
	}
}

func stress(t *testing.T, engine string) {
	length := 2 * time.Second
	if os.Getenv("YUMEN_LONG") == "1" {
		length = time.Minute
	}
	f := newFixture(t, upstreamOf(t, stressUpstream), with(func(c *fixtureConfig) {
		c.cfg.HTTP2Engine = engine
		c.cfg.Limits.UpstreamIdle, c.cfg.Limits.WriteStall = 2*time.Second, 2*time.Second
	}))
	f.gate.exact = true
	clients := []*http.Client{f.client("http/1.1"), f.client("h2"), f.client("h2")}
	for _, c := range clients {
		do(t, c, "GET", "https://"+host+"/small/0", nil, nil)
		c.CloseIdleConnections()
	}
	settle(t, f)
	goroutines, files := busy(), descriptors(t)

	ctx, stop := context.WithTimeout(t.Context(), length)
	defer stop()
	var wg sync.WaitGroup
	var asked, whole atomic.Int64
	wg.Go(func() { // access takes away what it gave, now and then
		for {
			select {
			case c := <-f.gate.acquired:
				if rand.N(3) == 0 {
					time.Sleep(rand.N(3 * time.Millisecond)) // wherever the exchange is by then
					c.Cut(reason.GrantRevoked)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	for i := range 24 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				asked.Add(1)
				if stressOne(t, ctx, clients[i%len(clients)], i*1_000_000+n) {
					whole.Add(1)
				}
			}
		})
	}
	wg.Wait()
	for _, c := range clients {
		c.CloseIdleConnections()
	}
	settle(t, f)
	f.p.site.Load().engine.CloseIdle()
	var g, d int
	for range 100 {
		if g, d = busy(), descriptors(t); g <= goroutines && d <= files {
			break
		}
		time.Sleep(50 * time.Millisecond) // the kernel's and other goroutines' progress
	}
	t.Logf("%d requests, %d answered whole; goroutines %d, then %d; descriptors %d, then %d", asked.Load(), whole.Load(), goroutines, g, files, d)
	if g > goroutines+4 || d > files+4 {
		b := make([]byte, 1<<20)
		t.Errorf("goroutines %d, then %d; descriptors %d, then %d\n%s", goroutines, g, files, d, b[:runtime.Stack(b, true)])
	}
	if whole.Load() == 0 {
		t.Error("no request was answered: the test proves nothing")
	}
}

// stressOne sends one request, does what chance says, and reports whether a
// whole answer came. Whatever comes must be this request's.
func stressOne(t *testing.T, ctx context.Context, c *http.Client, id int) bool {
	mark := fmt.Sprintf("<%09d>", id)
	kind := []string{"small", "big", "slow", "echo", "early", "broken", "head"}[rand.N(7)]
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	method, body := "GET", io.Reader(nil)
	switch kind {
	case "echo", "early":
		method, body = "POST", strings.NewReader(strings.Repeat(mark, 1+rand.N(100_000)))
		if rand.N(2) == 0 {
			body = io.MultiReader(body) // its length is not told
		}
	case "head":
		method = "HEAD"
	}
	r, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("https://%s/%s/%s", host, kind, strings.Trim(mark, "<>")), body)
	if err != nil {
		t.Error(err)
		return false
	}
	if rand.N(4) == 0 {
		time.AfterFunc(rand.N(5*time.Millisecond), cancel)
	}
	res, err := c.Do(r)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	if res.StatusCode != 200 {
		return false // cut before it began, or 502
	}
	if got := res.Header.Get("X-Mark"); got != mark {
		t.Errorf("%s %s: the answer to %q", kind, mark, got)
	}
	buf, off := make([]byte, 1+rand.N(64<<10)), 0
	for reads := 0; ; reads++ {
		n, err := res.Body.Read(buf)
		for i := range buf[:n] {
			if buf[i] != mark[(off+i)%len(mark)] {
				t.Errorf("%s %s: another's bytes at %d: %.40q", kind, mark, off+i, buf[i:n])
				return false
			}
		}
		off += n
		if err != nil {
			return err == io.EOF
		}
		switch rand.N(40) {
		case 0:
			return false // lost interest
		case 1:
			time.Sleep(rand.N(10 * time.Millisecond)) // a slow reader
		}
	}
}

// stressUpstream answers with the mark of the request, as its kind says.
func stressUpstream(w http.ResponseWriter, r *http.Request) {
	_, kind, _ := strings.Cut(r.URL.Path, "/")
	kind, id, _ := strings.Cut(kind, "/")
	mark := "<" + id + ">"
	w.Header().Set("X-Mark", mark)
	block := strings.Repeat(mark, 1000)
	switch kind {
	case "big":
		w.Header().Set("Content-Length", fmt.Sprint(300*len(block)))
		for range 300 {
			if _, err := io.WriteString(w, block); err != nil {
				return
			}
		}
	case "slow":
		for range 5 {
			if _, err := io.WriteString(w, block); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			time.Sleep(rand.N(2 * time.Millisecond)) // an upstream at work
		}
	case "echo":
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	case "early":
		_, _ = io.WriteString(w, block) // and never the body
	case "broken":
		w.Header().Set("Content-Length", fmt.Sprint(2*len(block)))
		_, _ = io.WriteString(w, block)
		panic(http.ErrAbortHandler)
	default:
		_, _ = io.WriteString(w, mark)
	}
}

// settle waits until every lease is given back.
func settle(t *testing.T, f *fixture) {
	t.Helper()
	for range 1000 {
		if leases, released := f.gate.balance(); leases == released {
			return
		}
		time.Sleep(10 * time.Millisecond) // other goroutines' progress
	}
	t.Error("leases are held 10 s after the last request")
}

// busy counts the goroutines that are no walkers of HTTP/2 waiting for work: that
// pool empties by and by.
func busy() int {
	b := make([]byte, 4<<20)
	return runtime.NumGoroutine() - strings.Count(string(b[:runtime.Stack(b, true)]), "h2.(*workers).run(")
}

func descriptors(t *testing.T) int {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(all)
}
