package fault

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/ctlclient"
)

// The control center's wall clock jumps an hour forward and back under alerts:
// reports arrive, once, with the time of their sender, and what is in force
// stays.
func TestR17_ClockOfTheControlCenterJumps(t *testing.T) {
	var offset atomic.Int64
	inBubble(t, func(c *control.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
	}, func(w *world) {
		rows, _, _ := w.gw.Rows()
		stop := every(shorter(2*time.Second, 6*time.Second), w.raise)
		for _, d := range []time.Duration{time.Hour, 0, -time.Hour, 0} {
			offset.Store(int64(d))
			time.Sleep(3 * time.Minute)
		}
		stop()
		w.raise()
		if live := w.live(); live > 3*time.Second {
			t.Errorf("an alert after the jumps took %v", live)
		}
		if took := w.lock(3 * time.Second); took > 3*time.Second {
			t.Errorf("a revocation after the jumps took %v", took)
		}
		w.settle(5 * time.Minute)
		w.complete()
		if now, _, _ := w.gw.Rows(); now != rows {
			t.Errorf("%d rows are in force after the jumps, %d before", now, rows)
		}
	})
}

// A second gateway on one state folder is refused: two would tear its versions
// and its outbox apart (R19).
func TestR19_SecondGatewayOnOneStateFolderIsRefused(t *testing.T) {
	inBubble(t, nil, func(w *world) {
		second, err := w.site.Gateway(w.gw.Party, func(c *ctlclient.GatewayConfig) { c.DeviceName = "twin" })
		if err == nil {
			second.Stop()
			t.Fatal("a second link took the same state folder")
		}
		if !strings.Contains(err.Error(), "another") {
			t.Errorf("refused with %q, want the cause and the remedy", err)
		}
		t.Logf("refused: %v", err)
		w.raise()
		if live := w.live(); live > 3*time.Second {
			t.Errorf("the first took %v for an alert afterwards", live)
		}
	})
}
