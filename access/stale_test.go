package access

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

// One application goes strict for everybody, the other for new sessions only;
// both end. The states change by the monitor's timers alone.
func TestR1_FreshnessOfEachApplicationInItsTime(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		w.SetStaleness(Staleness{Fresh: 2 * time.Minute, Strict: time.Hour, Expire: 3 * time.Hour},
			map[string]Staleness{app2: {Strict: 30 * time.Minute, StrictRefuses: RefuseAll}})
		s := w.attach(w.facts())
		w.refused(s, w.app, reason.ListExpired) // the control center has never been there
		w.Contact(time.Now())
		start := time.Now()
		one, two := w.open(s, w.app), w.open(s, w.two)
		states := func(want1, want2 Freshness) {
			t.Helper()
			synctest.Wait()
			if a, b := w.Freshness(w.app), w.Freshness(w.two); a != want1 || b != want2 {
				t.Errorf("after %v: %v and %v, want %v and %v", time.Since(start), a, b, want1, want2)
			}
		}
		to := func(d time.Duration) { time.Sleep(d - time.Since(start)) }
		states(Fresh, Fresh)
		to(2*time.Minute - time.Second)
		states(Fresh, Fresh)
		to(2 * time.Minute)
		states(StaleOK, StaleOK)
		if n := w.rec.count(alert.ListStale); n != 1 {
			t.Errorf("%d alerts %s, want one for both applications", n, alert.ListStale)
		}
		to(30*time.Minute - time.Second)
		wantLive(t, two)
		to(30 * time.Minute)
		states(StaleOK, StaleStrict)
		wantCut(t, two, reason.ListStale)
		if at := time.Unix(0, two.at.Load()).Sub(start); at != 30*time.Minute {
			t.Errorf("cut after %v, want 30m", at)
		}
		w.refused(s, w.two, reason.ListStale)
		w.open(s, w.app)
		to(time.Hour)
		states(StaleStrict, StaleStrict)
		wantLive(t, one)
		w.open(s, w.app) // a session from before goes on
		f := w.facts()
		f.SessionID, f.AuthTime = "S2", time.Now().Add(-time.Second) // signed in before it began
		w.open(w.attach(f), w.app)
		f.SessionID, f.AuthTime = "S3", time.Now()
		w.refused(w.attach(f), w.app, reason.ListStale)
		f.SessionID, f.AuthTime = "S4", time.Time{} // not known: it is new
		w.refused(w.attach(f), w.app, reason.ListStale)
		if n := w.rec.count(alert.ListStrict); n != 2 {
			t.Errorf("%d alerts %s, want 2", n, alert.ListStrict)
		}
		to(3 * time.Hour)
		states(Expired, Expired)
		wantCut(t, one, reason.ListExpired)
		w.refused(s, w.app, reason.ListExpired)
		if n := w.rec.count(alert.ListEnded); n != 1 {
			t.Errorf("%d alerts %s, want 1", n, alert.ListEnded)
		}

		w.Contact(time.Now())
		states(Fresh, Fresh)
		w.open(s, w.app)
		w.open(s, w.two)
		if n := w.rec.count(alert.ListFresh); n != 1 {
			t.Errorf("%d alerts %s, want 1", n, alert.ListFresh)
		}
		// An older word changes nothing.
		w.Contact(start)
		states(Fresh, Fresh)
	})
}

// New limits count at once, also for what flows.
func TestStalenessChangesByReload(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		w.SetStaleness(Staleness{}, nil)
		w.Contact(time.Now())
		s := w.attach(w.facts())
		f := w.open(s, w.app)
		time.Sleep(time.Hour)
		wantLive(t, f)
		w.SetStaleness(Staleness{Strict: 30 * time.Minute, Expire: 59 * time.Minute}, nil)
		wantCut(t, f, reason.ListExpired)
		if st := w.Freshness(w.app); st != Expired {
			t.Errorf("state %v", st)
		}
	})
}

func TestStalenessNamesWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		s    Staleness
		want bool
	}{
		{Staleness{}, true},
		{Staleness{Fresh: 30 * time.Second}, false},
		{Staleness{Fresh: time.Hour, Strict: time.Minute}, false},
		{Staleness{Expire: time.Hour}, false},
		{Staleness{Strict: time.Hour, Expire: time.Hour, StrictRefuses: RefuseAll}, true},
		{Staleness{StrictRefuses: "some"}, false},
	} {
		if err := c.s.Validate(DefaultStaleness); (err == nil) != c.want {
			t.Errorf("%+v: %v, want valid %v", c.s, err, c.want)
		}
	}
}
