package ctlclient

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/internal/spool"
)

// The link's own alerts of clause 7.4: the control center lost and back, reports
// refused for good, reports dropped.
func TestGCR002_M68_TheLinksAlertsAreFired(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		own := &alerts{}
		cfg.Alerts = own
		cfg.Outbox = NewMemory(MemoryConfig{Records: [NumClasses]int{1, 1, 1, 1}})
		g := newGateway(t, cfg)
		defer run(t, g.Run)()
		time.Sleep(5 * time.Second)
		want := func(code alert.Code, when string) {
			t.Helper()
			synctest.Wait()
			if own.count(code) == 0 {
				t.Errorf("%s: alert %s was not raised", when, code)
			}
		}
		c.setDead(true)
		time.Sleep(30 * time.Second)
		want(alert.ControlLost, "without a control center")
		for range 5 {
			g.Raise(alert.Alert{Code: alert.AppDown})
		}
		time.Sleep(2 * time.Minute)
		want(alert.OutboxDropped, "an outbox of one record")
		c.setDead(false)
		time.Sleep(2 * time.Minute)
		want(alert.ControlBack, "it is there again")
		c.mu.Lock()
		c.refuse = func(kind string) reason.Reason {
			if kind == "T10" {
				return reason.MessageInvalid
			}
			return reason.OK
		}
		c.mu.Unlock()
		time.Sleep(2 * time.Minute)
		want(alert.MessageRefused, "its statuses are refused")
	})
}

// What the disk of the outbox does is alerted, each kind by its own code, and
// what a crash leaves is not.
func TestGCR002_M68_TheOutboxAlertsAreFired(t *testing.T) {
	own := &alerts{}
	d := NewDurable(DurableConfig{Dir: t.TempDir(), Key: fixedKey, Caps: [NumClasses]int64{64 << 10, 64 << 10, 64 << 10, 64 << 10}, Reserve: -1, Alerts: own})
	if err := d.Open(); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for i := range 200 {
		if _, err := d.Append(context.Background(), ClassStatus, fmt.Appendf(nil, "%0400d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if own.count(alert.OutboxFilling) == 0 {
		t.Error("80 % of a cap were not alerted")
	}
	for _, k := range []spool.EventKind{spool.DiskFault, spool.DiskFull, spool.SpaceBack, spool.Corruption, spool.TornTail} {
		d.event(spool.Event{Kind: k, Class: spool.Alert, Err: fmt.Errorf("write: %v", k)})
	}
	for _, code := range []alert.Code{alert.DiskFault, alert.DiskFull, alert.DiskBack, alert.StateAltered} {
		if own.count(code) != 1 {
			t.Errorf("alert %s was raised %d times, want once", code, own.count(code))
		}
	}
}
