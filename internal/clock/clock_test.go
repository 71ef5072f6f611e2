package clock

import (
	"testing"
	"time"
)

func TestR17_StepsInBothDirectionsAreNoticed(t *testing.T) {
	wall, steady := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC), time.Duration(0)
	w := NewWatcher(func() time.Time { return wall }, func() time.Duration { return steady })
	for _, c := range []struct {
		wall, steady time.Duration
		want         bool
	}{
		{time.Second, time.Second, false},
		{10 * time.Hour, 10 * time.Hour, false}, // asleep
		{time.Second + Least - 1, time.Second, false},
		{time.Second + Least, time.Second, true},
		{time.Second - time.Hour, time.Second, true},
		{time.Second, time.Second, false}, // told once
		{time.Second - Least + 1, time.Second, false},
	} {
		wall, steady = wall.Add(c.wall), steady+c.steady
		by, stepped := w.Step()
		if stepped != c.want || by != c.wall-c.steady {
			t.Errorf("wall %v, steady %v: step %v %v, want %v", c.wall, c.steady, by, stepped, c.want)
		}
	}
}

func TestSteadyGoesOn(t *testing.T) {
	now := Steady()
	a := now()
	if b := now(); b < a {
		t.Errorf("from %v to %v", a, b)
	}
}
