package e2e

import (
	"context"
	"io"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/test/testbed"
)

// The program is replaced while clients connect, each request over a connection
// of its own: none of them fails, and no audit record is lost.
func TestR12_UpgradesLoseNoConnection(t *testing.T) {
	t.Parallel()
	upgrades, clients, pause := 3, 4, 40*time.Millisecond
	if testbed.Long() {
		upgrades, clients, pause = 30, 16, 8*time.Millisecond
	}
	l := newLone(t, "")
	cert := l.Client(alice, aliceDevice)
	url := l.URL(l.app, "/upgrade")
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var good, failed atomic.Int64
	var slowest atomic.Int64
	for range clients {
		all.Go(func() {
			c := l.HTTP(cert, false) // a connection a request
			for ctx.Err() == nil {
				start := time.Now()
				res, err := c.Get(url)
				if err == nil {
					_, err = io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
				if err != nil || res.StatusCode != http.StatusOK {
					failed.Add(1)
					t.Errorf("after %v: %v %v", time.Since(start), err, res)
					return
				}
				good.Add(1)
				slowest.Store(max(slowest.Load(), int64(time.Since(start))))
				time.Sleep(pause)
			}
		})
	}
	config := filepath.Join(l.Dir, "gateway", "gateway.yaml")
	old := l.Process
	for i := range upgrades {
		before := good.Load()
		testbed.Eventually(t, 30*time.Second, "nobody is served", func() bool { return good.Load() > before+5 })
		next := testbed.Run(t, "lone gateway", "gateway", "run", "-c", config, "--take-over")
		if code, err := old.Wait(within(t, time.Minute)); err != nil || code != 0 {
			t.Fatalf("upgrade %d: the old process ended with %d, %v\n%s", i, code, err, old.Output())
		}
		if !next.Running() {
			t.Fatalf("upgrade %d: the new process has ended\n%s", i, next.Output())
		}
		old = next
	}
	before := good.Load()
	testbed.Eventually(t, 30*time.Second, "nobody is served", func() bool { return good.Load() > before+5 })
	stop()
	all.Wait()
	t.Logf("%d upgrades, %d connections, %d failed, the slowest took %v", upgrades, good.Load(), failed.Load(), time.Duration(slowest.Load()))
	ids := map[string]bool{}
	testbed.Eventually(t, 20*time.Second, "a request has no audit record", func() bool {
		for _, r := range l.Audit.Find(t, func(r *audit.Record) bool { return r.Path == "/upgrade" && r.RequestID != "" }) {
			ids[r.RequestID] = true
		}
		return len(ids) >= int(good.Load())
	})
}
