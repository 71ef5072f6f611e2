package access

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/wire"
)

// The wall clock of a process steps while a lease lives and the control center
// is away. Back by an hour: the grant, what is stale and what a new request
// gets end as if it had not stepped. Forward: they end early, and stay ended
// when it steps back again.
func TestR17_ClockStepsUnderALiveLease(t *testing.T) {
	for name, c := range map[string]struct{ step, ends time.Duration }{
		"an hour back":    {-time.Hour, 40 * time.Minute},
		"to 1970":         {-30 * 365 * 24 * time.Hour, 40 * time.Minute},
		"5 minutes back":  {-5 * time.Minute, 40 * time.Minute},
		"a second back":   {-time.Second, 40 * time.Minute},
		"an hour forward": {time.Hour, 10 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			var off atomic.Int64
			// Without a monotonic reading: only the wall clock steps.
			wall := func() time.Time { return time.Now().Round(0).Add(time.Duration(off.Load())) }
			bubble(t, Config{Now: wall}, func(w *world) {
				w.SetStaleness(Staleness{Fresh: 2 * time.Minute, Strict: 50 * time.Minute, Expire: 50 * time.Minute}, nil)
				w.Contact(w.cfg.Now())
				start := time.Now()
				w.in.Grants[0].ExpirationDate = wire.FormatTime(start.Add(40 * time.Minute))
				w.apply()
				s := w.attach(w.facts())
				l := w.open(s, w.app)
				time.Sleep(10*time.Minute - time.Since(start))
				off.Store(int64(c.step))
				for l.n.Load() == 0 && time.Since(start) < 3*time.Hour {
					time.Sleep(time.Second)
					synctest.Wait()
				}
				took := time.Since(start)
				nothing := func() {
					t.Helper()
					if l, _ := w.Acquire(s, w.app, w.request(), &flow{}); l != nil {
						t.Error("a request was let through after the grant's end")
					}
				}
				if took > c.ends+2*time.Second || took < c.ends-2*time.Second {
					t.Errorf("the lease ended after %v, want %v", took, c.ends)
				}
				nothing()
				time.Sleep(50*time.Minute + 2*time.Second - time.Since(start))
				if f := w.Freshness(w.app); f != Expired {
					t.Errorf("50m after the last contact the lists are %v, want expired", f)
				}
				t.Logf("%s: a grant of 40m ended after %v", name, took)
				off.Store(0)
				w.Contact(w.cfg.Now())
				nothing()
			})
		})
	}
}
