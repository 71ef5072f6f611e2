package ctlclient

import (
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/internal/alert"
)

// A control center of another make acknowledges by msgId with a plain T5. All
// arrives, and the proof says how it was acknowledged.
func TestOutboxOfAnotherMakeIsAcknowledgedNotChained(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		cfg.Outbox = nil // the default: on disk
		g := newGateway(t, cfg)
		stop := run(t, g.Run)
		for range 5 {
			g.Raise(alert.Alert{Code: alert.AppDown})
		}
		time.Sleep(10 * time.Second)
		stop()
		synctest.Wait()
		if n := len(c.of("T11")); n < 5 {
			t.Errorf("%d alerts arrived, want 5", n)
		}
		proofs, err := ProveFolder(w.gateway, filepath.Join(cfg.StateDir, "outbox"), "alert", 1, 0)
		if err != nil || len(proofs) != 1 {
			t.Fatal(proofs, err)
		}
		if p := proofs[0]; !p.Contiguous || p.NotChained < 5 || p.Acknowledged != 0 || p.Evidence != nil || p.Waiting != 0 {
			t.Errorf("proof %+v", p)
		}
	})
}
