package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/test/testbed"
)

// What a gateway holds when nobody is there.
type holding struct {
	goroutines, descriptors float64
	heap, memory            float64 // bytes; live, and of the whole process
}

// holding waits until nothing moves any more.
func (l *lone) holding(t testing.TB, atMost holding) (h holding) {
	t.Helper()
	for range 150 {
		if err := l.Admin.Do(t.Context(), http.MethodPost, "/memory/free", nil, nil); err != nil {
			t.Fatal(err)
		}
		g := l.gauges(t, "go_goroutines", "process_open_fds", "go_memstats_heap_alloc_bytes", "process_resident_memory_bytes", "yumen_connections")
		h = holding{g["go_goroutines"], g["process_open_fds"], g["go_memstats_heap_alloc_bytes"], g["process_resident_memory_bytes"]}
		if g["yumen_connections"] == 0 && (atMost == (holding{}) || h.goroutines <= atMost.goroutines && h.descriptors <= atMost.descriptors && h.heap <= atMost.heap) {
			break
		}
		time.Sleep(200 * time.Millisecond) // idle connections to applications end by their own time
	}
	return h
}

// Clients come and go, streams are opened, left and cut, lists and configuration
// change under them: for minutes in the long run, for as long as YUMEN_SOAK says
// where it is set. What the gateway holds afterwards is what it held before.
func TestR21_NothingGrowsUnderLoad(t *testing.T) {
	if !testbed.Long() {
		t.Skip("SKIPPED, NOT PASSED: it takes minutes; YUMEN_LONG=1 runs it")
	}
	length := 2 * time.Minute
	if d, err := time.ParseDuration(os.Getenv("YUMEN_SOAK")); err == nil {
		length = d
	}
	web := testbed.NewWebApp(t, false)
	l := &lone{
		app:   testbed.App{ID: webID, Name: "web", Upstream: web.URL},
		other: testbed.App{ID: "APP00000009", Name: "other", Upstream: web.URL},
	}
	l.Lone = testbed.NewLone(t, testbed.LoneConfig{Apps: []testbed.App{l.app, l.other}, Grants: loneGrants(), Gateway: "proxy: {limits: {upstream_idle: 5s}}\n"})
	cert := l.Client(alice, aliceDevice)
	version := uint64(1)
	var connections, streams, cuts atomic.Int64
	run := func(d time.Duration) {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		load := l.connector(t, "/load", 40, 32)
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				c := l.HTTP(cert, i%2 == 0)
				for ctx.Err() == nil {
					if some(ctx, l, c, i, &cuts) {
						streams.Add(1)
					}
					c.CloseIdleConnections()
				}
			})
		}
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for i := 0; ctx.Err() == nil; i++ {
			select {
			case <-ctx.Done():
			case <-tick.C:
				apps := []string{webID, l.other.ID}[:1+i%2] // the second one comes and goes
				version++
				l.PutGrants(l.Grants(version, testbed.NewGrant(alice, aliceDevice, aliceToken, apps...)))
				if err := l.Reload(); err != nil {
					t.Errorf("reload: %v", err)
				}
			}
		}
		all.Wait()
		n := load.Stop()
		connections.Add(n.Good)
		if n.Failed > 0 {
			t.Errorf("%d connections failed, first %s", n.Failed, n.First)
		}
	}
	run(20 * time.Second) // what is made once
	base := l.holding(t, holding{})
	run(length)
	end := l.holding(t, holding{base.goroutines + 10, base.descriptors + 10, base.heap + 3<<20, 0})
	const mib = 1 << 20
	minutes := length.Minutes() / 10 // a MiB in ten of them is as much as the row gives
	t.Logf("%v, %d connections, %d streams of which %d were cut, %d lists: goroutines %v, then %v; descriptors %v, then %v; live heap %.1f MiB, then %.1f; process %.1f, then %.1f",
		length, connections.Load(), streams.Load(), cuts.Load(), version, base.goroutines, end.goroutines, base.descriptors, end.descriptors, base.heap/mib, end.heap/mib, base.memory/mib, end.memory/mib)
	// Buffers have grown to what they need, and a process keeps pages that its heap
	// has needed once: at most so much more.
	if end.goroutines > base.goroutines+10 || end.descriptors > base.descriptors+10 || end.heap > base.heap+(3+minutes)*mib || end.memory > base.memory+(8+minutes)*mib {
		t.Error("something is left of them")
	}
}

// some opens a stream, takes a part of it, and ends or leaves it. It reports
// whether it began.
func some(ctx context.Context, l *lone, c *http.Client, who int, cuts *atomic.Int64) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(100+rand.N(3000))*time.Millisecond)
	defer cancel()
	app, path := l.app, []string{"/events", "/endless?rate=100000", "/hold?for=50ms", fmt.Sprintf("/%d", who)}[rand.N(4)]
	if rand.N(2) == 0 {
		app = l.other
	}
	r, err := http.NewRequestWithContext(ctx, "GET", l.URL(app, path), nil)
	if err != nil {
		return false
	}
	res, err := c.Do(r)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil && ctx.Err() == nil {
		cuts.Add(1)
	}
	return res.StatusCode == http.StatusOK
}
