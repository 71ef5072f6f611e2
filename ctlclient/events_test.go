package ctlclient

import (
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/wire"
)

// A push stream whose packets vanish must not cost a revocation 3 s.
func TestGCR002_M48_RevocationDoesNotWaitForADeadStream(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		var streams atomic.Int32
		dead := make(chan struct{})
		c.setFault(func(rw http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/ztna/v1/gateway/events" || streams.Add(1) > 1 {
				return false
			}
			rw.Header().Set("Content-Type", "text/event-stream")
			rw.Header().Set(wire.HeartbeatHeader, "500")
			rw.WriteHeader(http.StatusOK)
			for {
				io.WriteString(rw, ": beat\n\n")
				http.NewResponseController(rw).Flush()
				select {
				case <-dead:
					<-r.Context().Done()
					return true
				case <-time.After(500 * time.Millisecond):
				}
			}
		})
		g := newGateway(t, cfg)
		defer run(t, g.Run)()
		time.Sleep(30 * time.Second)
		if n := streams.Load(); n != 1 || g.Status().Reopened != 0 {
			t.Fatalf("%d streams while the first one beats, want 1", n)
		}
		close(dead)
		cut := time.Now()
		revoke := wire.Delta{From: 1, To: 2, Revoke: []wire.Revocation{{UserID: "USR00000001", IssuedBefore: wire.FormatTime(time.Now())}}}
		line := w.delta(revoke)
		for took := time.Duration(0); ; took = time.Since(cut) {
			c.push("2", "delta", line) // reaches the streams that are open
			e.mu.Lock()
			n := len(e.deltas)
			e.mu.Unlock()
			if n > 0 {
				t.Logf("the revocation arrived %v after the stream had died", took)
				break
			}
			if took >= 3*time.Second {
				t.Fatalf("no revocation %v after the stream had died, %d streams", took, streams.Load())
			}
			time.Sleep(10 * time.Millisecond)
		}
		if s := g.Status(); s.Reopened != 1 || s.Sessions != 1 || !s.Push {
			t.Errorf("status %+v, want one stream reopened in the same session", s)
		}
	})
}

func TestSilenceFollowsTheAnnouncedHeartbeatAndThePath(t *testing.T) {
	for _, c := range []struct {
		header      string
		usual, want time.Duration
	}{
		{"", 0, 25 * time.Second}, {"x", 0, 25 * time.Second}, {"-5", 0, 25 * time.Second}, {"0", 0, 25 * time.Second},
		{"100", 0, 500 * time.Millisecond}, {"300", 20 * time.Millisecond, 900 * time.Millisecond}, {"1000", 0, 3 * time.Second}, {"60000", 0, 25 * time.Second},
		{"300", 1100 * time.Millisecond, 1600 * time.Millisecond}, {"300", time.Minute, 25 * time.Second},
	} {
		h := http.Header{}
		h.Set(wire.HeartbeatHeader, c.header)
		if got := silenceOf(h, c.usual); got != c.want {
			t.Errorf("heartbeat %q, answers within %v: silence %v, want %v", c.header, c.usual, got, c.want)
		}
	}
}
