package fault

import (
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/test/testbed"
)

// Four hours without the path to the control center, under alerts: afterwards
// nothing is missing and nothing had its effect twice.
func TestGCR002_M49_R1_R2_OutageOfHours(t *testing.T) {
	inBubble(t, nil, func(w *world) {
		w.net.Partition()
		stop := every(shorter(15*time.Second, time.Minute), w.raise)
		time.Sleep(4 * time.Hour)
		stop()
		w.net.Heal()
		back := time.Now()
		w.raise() // the first live one
		live := w.live()
		if live > 3*time.Second {
			t.Errorf("the first live alert after the outage took %v, want at most 3s", live)
		}
		drained := w.settle(10 * time.Minute)
		w.complete()
		if n := w.gw.Own.Count(alert.ControlLost); n != 1 {
			t.Errorf("the outage was alerted %d times, want once", n)
		}
		t.Logf("4 h of outage: first live alert %v after the path was back, everything %v after it (%d alerts)", live, time.Since(back).Round(time.Millisecond), len(w.alerts))
		_ = drained
	})
}

// shorter returns how long something takes in the long form, and in the short
// one: what it proves is the same, of less.
func shorter(long, short time.Duration) time.Duration {
	if testbed.Long() {
		return long
	}
	return short
}

// live waits for the newest numbered alerts and returns how long they took to
// arrive.
func (w *world) live() time.Duration {
	w.t.Helper()
	began := time.Now()
	for time.Since(began) < time.Minute {
		got := w.arrivals()
		newest, all := time.Time{}, true
		for name, at := range w.alerts {
			if at.Before(newest) {
				continue
			}
			if at.After(newest) {
				newest, all = at, true
			}
			_, ok := got[name]
			all = all && ok
		}
		if all {
			return time.Since(newest)
		}
		time.Sleep(20 * time.Millisecond)
	}
	w.t.Fatalf("the newest alerts did not arrive: %+v", w.gw.Status())
	return 0
}

// Ten restarts of the control center under alerts (four in the short form).
func TestGCR002_M49_RestartOfTheControlCenter(t *testing.T) {
	inBubble(t, nil, func(w *world) {
		restarts := 4
		if testbed.Long() {
			restarts = 10
		}
		stop := every(shorter(500*time.Millisecond, 2*time.Second), w.raise)
		for range restarts {
			time.Sleep(20 * time.Second)
			w.must(w.site.Stop())
			time.Sleep(5 * time.Second)
			w.must(w.site.Start())
		}
		time.Sleep(time.Minute)
		stop()
		w.raise()
		live := w.live()
		w.settle(5 * time.Minute)
		w.complete()
		t.Logf("%d restarts: the last live alert took %v", restarts, live)
	})
}

// Every connection's packets vanish silently; nobody is told. Alerts, status
// and revocations still take less than 3 s.
func TestGCR002_M48_ConnectionsThatVanish(t *testing.T) {
	inBubble(t, nil, func(w *world) {
		var worst time.Duration
		rounds := 8
		if testbed.Long() {
			rounds = 30
		}
		for range rounds {
			n := w.net.Vanish()
			if n == 0 {
				t.Fatal("there was no connection to vanish")
			}
			w.raise()
			took := w.lock(3 * time.Second)
			worst = max(worst, took)
			if live := w.live(); live > 3*time.Second {
				t.Errorf("alerts over vanished connections took %v", live)
			}
			time.Sleep(40 * time.Second) // a kept connection or two are idle again
			w.unlock()
			time.Sleep(47 * time.Second)
		}
		w.settle(time.Minute)
		w.complete()
		for table, took := range w.worst {
			t.Logf("%s: worst %v", table, took)
			if took >= 3*time.Second {
				t.Errorf("%s took %v over a vanished connection, want less than 3s", table, took)
			}
		}
		t.Logf("revocation: worst %v", worst)
		if st := w.gw.Status(); st.Sessions != 1 {
			t.Errorf("%d sessions, want the one of the start", st.Sessions)
		}
	})
}
