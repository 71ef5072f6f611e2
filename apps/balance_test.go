package apps

import (
	"fmt"
	"testing"
	"time"
)

var start = time.Unix(1_800_000_000, 0)

// shares counts which upstream n uses get, one after the other.
func shares(a *App, now time.Time, n int) map[string]int {
	m := map[string]int{}
	for range n {
		u := a.Pick(now, "", "http")
		m[u.Host]++
		u.Report(Good, now)
		u.Release()
	}
	return m
}

// fail reports faults until u is passed over.
func fail(u *Upstream, now time.Time) {
	for range weightToEject / faultWeight {
		u.Report(Fault, now)
	}
}

func TestPickPassesOverWhatFails(t *testing.T) {
	_, a := one(t, AppConfig{Upstreams: []string{"http://10.0.0.1", "http://10.0.0.2", "tcp://10.0.0.3:1"}})
	if m := shares(a, start, 100); m["10.0.0.1"] == 0 || m["10.0.0.2"] == 0 || m["10.0.0.3"] != 0 {
		t.Errorf("shares %v", m)
	}
	u := a.Upstreams[0]
	u.Report(Fault, start)
	u.Report(Fault, start)
	u.Report(Good, start)
	u.Report(Fault, start)
	u.Report(Fault, start)
	if m := shares(a, start, 100); m["10.0.0.1"] == 0 {
		t.Errorf("shares %v: faults that do not follow each other count together", m)
	}
	fail(u, start)
	if m := shares(a, start, 100); m["10.0.0.1"] != 0 {
		t.Errorf("shares %v after faults", m)
	}
	if a.Pick(start, "", "udp") != nil {
		t.Error("an upstream of a kind that the application has not")
	}
	busy := a.Pick(start.Add(time.Hour), "", "http")
	busy.Report(Good, start.Add(time.Hour))
	for range 4 {
		n := a.Pick(start.Add(time.Hour), "", "http")
		if n == busy {
			t.Error("the busy one is taken although the other is idle")
		}
		n.Report(Good, start.Add(time.Hour))
		n.Release()
	}
}

// After the pause one use tries the upstream, and the pause doubles when it
// fails again.
func TestR9_OneUseTriesWhatWasEjected(t *testing.T) {
	for _, balance := range []string{leastConnections, roundRobin} {
		_, a := one(t, AppConfig{Balance: balance, Upstreams: []string{"http://10.0.0.1", "http://10.0.0.2"}})
		bad, now := a.Upstreams[0], start
		fail(bad, now)
		for _, pause := range []time.Duration{ejectFor, 2 * ejectFor, 4 * ejectFor} {
			if got := bad.Status(now); got.State != stateEjected || got.Pause != pause {
				t.Fatalf("%s: %+v, want ejected for %v", balance, got, pause)
			}
			if m := shares(a, now.Add(pause-1), 10); m["10.0.0.1"] != 0 {
				t.Fatalf("%s: shares %v before the pause is over", balance, m)
			}
			now = now.Add(pause)
			if got := bad.Status(now).State; got != stateTrial {
				t.Fatalf("%s: %s, want a trial", balance, got)
			}
			try := a.Pick(now, "", "http")
			if balance == roundRobin && try != bad { // in its turn
				try.Release()
				try = a.Pick(now, "", "http")
			}
			if try != bad {
				t.Fatalf("%s: nobody tries it", balance)
			}
			if m := shares(a, now, 10); m["10.0.0.1"] != 0 {
				t.Fatalf("%s: shares %v while it is being tried", balance, m)
			}
			try.Report(Fault, now)
			try.Release()
		}
		now = now.Add(ejectMost)
		for range 2 {
			try := a.Pick(now, "", "http")
			try.Report(Good, now)
			try.Release()
		}
		if got := bad.Status(now); got.State != stateUp || got.Ejections != 4 || got.Active != 0 {
			t.Errorf("%s: %+v after a good answer", balance, got)
		}
		fail(bad, now)
		if got := bad.Status(now).Pause; got != ejectFor {
			t.Errorf("%s: pause %v, want the first one again", balance, got)
		}
	}
}

// A trial whose client goes away has said nothing: the next use tries again.
func TestANeutralTrialIsTriedAgain(t *testing.T) {
	_, a := one(t, AppConfig{Upstreams: []string{"http://10.0.0.1", "http://10.0.0.2"}})
	fail(a.Upstreams[0], start)
	for range 2 {
		u := a.Pick(start.Add(ejectFor), "", "http")
		if u != a.Upstreams[0] {
			t.Fatal("not tried")
		}
		u.Report(Neutral, start)
		u.Release()
	}
}

func TestFailingAnswersCountLess(t *testing.T) {
	_, a := one(t, AppConfig{Upstreams: []string{"http://10.0.0.1", "http://10.0.0.2"}})
	u := a.Upstreams[0]
	for i := range weightToEject / failingWeight {
		if got := u.Status(start).State; got != stateUp {
			t.Fatalf("%s after %d failing answers", got, i)
		}
		u.Report(Failing, start)
	}
	if got := u.Status(start).State; got != stateEjected {
		t.Errorf("%s after five failing answers", got)
	}
}

func TestWhenAllAreEjectedOneIsTriedAllTheSame(t *testing.T) {
	_, a := one(t, AppConfig{Upstreams: []string{"http://10.0.0.1", "http://10.0.0.2"}})
	fail(a.Upstreams[0], start)
	fail(a.Upstreams[1], start)
	if a.Pick(start, "", "http") == nil {
		t.Error("none is picked")
	}
	for _, u := range a.Upstreams {
		u.down.Store(true)
	}
	if a.Pick(start, "", "http") != nil || !a.Down("http", "https") || a.Down("tcp") {
		t.Error("what checks found down is picked")
	}
}

func TestConsistentHashMovesOnlyTheKeysOfWhatGoes(t *testing.T) {
	urls := []string{"http://10.0.0.1", "http://10.0.0.2", "http://10.0.0.3", "http://10.0.0.4"}
	_, a := one(t, AppConfig{Balance: consistentHash, Upstreams: urls})
	_, b := one(t, AppConfig{Balance: consistentHash, Upstreams: []string{urls[3], urls[1], urls[0], urls[2]}}) // another gateway of the site
	const keys = 4000
	pick := func(a *App, i int) string {
		u := a.Pick(start, fmt.Sprintf("USR%08d", i), "http")
		defer u.Release()
		return u.Host
	}
	was, count := make([]string, keys), map[string]int{}
	for i := range keys {
		was[i] = pick(a, i)
		count[was[i]]++
		if again := pick(a, i); again != was[i] {
			t.Fatalf("key %d: %s, then %s", i, was[i], again)
		}
		if other := pick(b, i); other != was[i] {
			t.Fatalf("key %d: %s here, %s at another gateway", i, was[i], other)
		}
	}
	for h, n := range count {
		if n < keys/4*8/10 || n > keys/4*12/10 {
			t.Errorf("%s has %d of %d keys", h, n, keys)
		}
	}
	fail(a.Upstreams[2], start)
	for i := range keys {
		switch now := pick(a, i); {
		case was[i] == "10.0.0.3" && now == was[i]:
			t.Fatalf("key %d stays with what has gone", i)
		case was[i] != "10.0.0.3" && now != was[i]:
			t.Fatalf("key %d moved from %s to %s", i, was[i], now)
		}
	}
}

func TestMaxRequestsBoundsWhatIsInHand(t *testing.T) {
	_, a := one(t, AppConfig{MaxRequests: 2})
	for i, possible := range []bool{true, true, false} {
		if a.Enter(start) != possible {
			t.Errorf("request %d: possible %v, want %v", i+1, !possible, possible)
		}
	}
	a.Leave()
	if !a.Enter(start) || a.InHand() != 2 {
		t.Errorf("one has left, %d in hand", a.InHand())
	}
	if total, rate := a.Requests(start.Add(rateSlot)); total != 3 || rate != 3.0/60 {
		t.Errorf("%d requests, %v a second; want 3 in the last minute", total, rate)
	}
	if total, rate := a.Requests(start.Add(2 * time.Minute)); total != 3 || rate != 0 {
		t.Errorf("%d requests, %v a second; want none in the last minute", total, rate)
	}
}

// What is known of an upstream outlives a reload that keeps its URL.
func TestAReloadKeepsWhatIsKnownOfUpstreams(t *testing.T) {
	health := HealthConfig{Interval: time.Minute}
	r, a := one(t, AppConfig{Upstreams: []string{"http://10.0.0.1", "http://10.0.0.2"}, Health: health})
	fail(a.Upstreams[0], start)
	a.Upstreams[1].down.Store(true)
	_, b := one(t, AppConfig{Upstreams: []string{"http://10.0.0.2", "http://10.0.0.1", "http://10.0.0.3"}, Health: health}, func(c *Config) { c.Previous = r })
	var states []string
	for _, u := range b.Upstreams {
		states = append(states, u.Status(start).State)
	}
	if got := fmt.Sprint(states); got != "[down ejected up]" {
		t.Errorf("states %s", got)
	}
	_, c := one(t, AppConfig{Upstreams: []string{"http://10.0.0.2"}}, func(c *Config) { c.Previous = r })
	if got := c.Upstreams[0].Status(start).State; got != stateUp {
		t.Errorf("%s without checks: nobody would bring it back", got)
	}
}
