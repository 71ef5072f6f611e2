package fault

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
)

// fill puts n alerts into a party's outbox while no link runs.
func fill(t *testing.T, p *party, from, n int) {
	t.Helper()
	d := p.durable()
	if err := d.Open(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 64 {
		wg.Go(func() {
			for i := from + w; i < from+n; i += 64 {
				if _, err := d.Append(context.Background(), ctlclient.ClassAlert, alertReport(p, i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestR2_BacklogInOrderBesideLiveAlerts: after an outage the backlog comes in
// order, at 2,000 records a second or more on an idle machine, and alerts that
// are raised meanwhile are at the control center within 3 s. Nothing is missing,
// nothing twice.
func TestR2_BacklogInOrderBesideLiveAlerts(t *testing.T) {
	const backlog = 20000
	c := newCenter(t)
	p := c.enrol("gateway")
	fill(t, p, 0, backlog)
	d := p.durable()
	begin := time.Now()
	g, stop := p.run(d, &sink{})
	raised := map[string]time.Time{}
	live := 0
	for {
		what := fmt.Sprintf("live %04d", live)
		raised[what] = time.Now()
		g.Raise(alert.Alert{Code: alert.AppDown, Detail: what})
		live++
		if at := c.positions()["alert"].UpTo; at >= backlog {
			break
		}
		if time.Since(begin) > 2*time.Minute {
			t.Fatalf("after 2 min the control center stands at %d", c.positions()["alert"].UpTo)
		}
		time.Sleep(50 * time.Millisecond)
	}
	took := time.Since(begin)
	eventually(t, 10*time.Second, "everything is acknowledged", func() bool { return c.positions()["alert"].UpTo >= uint64(backlog+live) })
	stop()

	seen, last, slowest := map[string]int{}, -1, time.Duration(0)
	for _, l := range c.alerts() {
		seen[l.MsgID]++
		if seen[l.MsgID] > 1 {
			t.Errorf("%s came twice", l.MsgID)
		}
		var n int
		if _, err := fmt.Sscanf(l.Content, "backlog %d", &n); err == nil {
			if l.Time != "2026-01-02T03:04:05Z" {
				t.Errorf("record %d has the time %s", n, l.Time)
			}
			continue
		}
		if i := strings.Index(l.Content, "live "); i >= 0 {
			slowest = max(slowest, l.Received.Sub(raised[l.Content[i:i+9]]))
			last++
		}
	}
	if len(seen) < backlog+live {
		t.Errorf("%d alerts arrived, want %d", len(seen), backlog+live)
	}
	if last+1 < live {
		t.Errorf("%d live alerts arrived, want %d", last+1, live)
	}
	if slowest > 3*time.Second {
		t.Errorf("a live alert took %v beside the backlog, want at most 3 s", slowest)
	}
	t.Logf("%d records in %v: %.0f a second; %d live alerts meanwhile, the slowest after %v", backlog, took.Round(time.Millisecond), backlog/took.Seconds(), live, slowest.Round(time.Millisecond))
}
