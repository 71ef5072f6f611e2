package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/apps"
)

// An application that hangs, flaps or talks garbage costs the other ones
// nothing, and nothing of it stays. Rounds in which it is well and rounds in
// which it is not take turns, under the same clients, so that what else happens
// on the machine counts for both: what is compared is the median of the rounds'
// p99.
func TestR8_R9_OtherApplicationsDoNotNotice(t *testing.T) {
	rounds, each, patience := 3, 60, time.Second
	if os.Getenv("YUMEN_LONG") == "1" {
		rounds, each, patience = 40, 200, 300*time.Millisecond
	}
	var ill atomic.Bool
	var n, well, hung atomic.Int64
	bad := broken(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(in); err != nil {
				return
			}
			if !ill.Load() {
				well.Add(1)
				if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
					return
				}
				continue
			}
			switch n.Add(1) % 4 {
			case 0: // hangs
				hung.Add(1)
				_, _ = io.Copy(io.Discard, c)
			case 1: // garbage
				_, _ = io.WriteString(c, strings.Repeat("nonsense", 4<<10))
			case 2: // half an answer
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nab")
			default: // flaps
			}
			return
		}
	})
	f := newFixture(t, bad, with(func(c *fixtureConfig) {
		c.second = ok(t).URL
		c.app.Timeouts = apps.TimeoutsConfig{Answer: patience, Idle: patience}
	}))
	c := f.client("http/1.1")
	defer c.CloseIdleConnections()
	measure := func() time.Duration {
		took := make([]time.Duration, each)
		for i := range took {
			start := time.Now()
			if res, _ := do(t, c, "GET", "https://other.example.test/", nil, nil); res.StatusCode != 200 {
				t.Fatalf("status %d", res.StatusCode)
			}
			took[i] = time.Since(start)
			time.Sleep(2 * time.Millisecond) // a rate, not a flood
		}
		slices.Sort(took)
		return took[len(took)*99/100]
	}
	measure()
	before := runtime.NumGoroutine()
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var asked, failed atomic.Int64
	for range 8 {
		all.Go(func() {
			c := f.client("h2") // half an answer costs no connection, so no handshake
			defer c.CloseIdleConnections()
			for ctx.Err() == nil {
				r, _ := http.NewRequestWithContext(ctx, "GET", "https://"+host+"/", nil)
				asked.Add(1)
				if res, err := c.Do(r); err == nil {
					if res.StatusCode != 200 {
						failed.Add(1)
					}
					_, _ = io.Copy(io.Discard, res.Body)
					res.Body.Close()
				} else {
					failed.Add(1)
				}
				select { // as often as a client that is patient
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	var alone, beside []time.Duration
	for i := range 2 * rounds {
		sick := i%4 == 1 || i%4 == 2 // neither always comes first
		ill.Store(sick)
		if d := measure(); sick {
			beside = append(beside, d)
		} else {
			alone = append(alone, d)
		}
	}
	stop()
	all.Wait()
	median := func(d []time.Duration) time.Duration { slices.Sort(d); return d[len(d)/2] }
	a, b := median(alone), median(beside)
	ratio := float64(b) / float64(a)
	t.Logf("median of %d rounds' p99: %v beside a healthy application, %v beside a broken one: %.2f times; %d requests to it, %d failed, %d hung", rounds, a, b, ratio, asked.Load(), failed.Load(), hung.Load())
	if failed.Load() == 0 || hung.Load() == 0 || well.Load() == 0 {
		t.Error("the application was never ill, or never well: the test proves nothing")
	}
	// A few rounds are too few for the row's figure; what waits for the broken
	// application waits for a second.
	most := max(5*a, 500*time.Millisecond)
	if rounds > 30 {
		if most = a * 12 / 10; crowded() { // nice -n -15 keeps the others away
			most = max(most, a+2*time.Millisecond)
		}
	}
	if b > most {
		t.Errorf("p99 %v beside the broken application, %v beside the healthy one", b, a)
	}
	end := time.Now().Add(60 * time.Second)
	for runtime.NumGoroutine() > before+20 { // pooled connections to the good one may be more
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
		f.p.site.Load().engine.CloseIdle()
		time.Sleep(10 * time.Millisecond)
	}
}

// crowded reports whether others want the processors, too: then who waits for a
// slice of theirs is chance.
func crowded() bool {
	raw, err := os.ReadFile("/proc/loadavg")
	var load float64
	if err == nil {
		_, err = fmt.Sscan(string(raw), &load)
	}
	return err == nil && load > float64(2*runtime.NumCPU())
}
