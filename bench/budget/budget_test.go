package main

import (
	"testing"
	"time"
)

// run measures a short form of one cell.
func run(t *testing.T, name string, n int, rate float64) *result {
	t.Helper()
	for _, c := range cells {
		if c.name == name {
			r, err := measure(c, n, rate)
			if err != nil {
				t.Fatal(err)
			}
			for k, s := range r.Samples {
				if len(s) > 0 {
					t.Logf("%s %s: %d samples, p50 %v, p99 %v, max %v", name, k, len(s), show(at(s, .5)), show(at(s, .99)), show(s[len(s)-1]))
				}
			}
			return r
		}
	}
	t.Fatalf("no cell %s", name)
	return nil
}

// A verdict that cannot be FAIL says nothing: a planted delay of 3.5 s is found,
// in the tables that it was planted in.
func TestGCR002_M48_PlantedDelayFails(t *testing.T) {
	r := run(t, "planted", 20, 20)
	s := r.Samples["agent-control T22"]
	if r.pass() || len(s) == 0 || s[len(s)-1] < limit {
		t.Errorf("a planted delay of 3.5 s was not found: %+v", r)
	}
}

// The short form of two cells: nothing is missing and nothing doubled. The
// maximum is judged by the long form, on a machine that has nothing else to do.
func TestGCR002_M48_BudgetShortForm(t *testing.T) {
	for _, name := range []string{"idle", "blackhole"} {
		r := run(t, name, 60, 20)
		if r.Missing != 0 || r.Doubled != 0 || r.Gap > gapLimit {
			t.Errorf("%s: missing %d, doubled %d, identity gap %v", name, r.Missing, r.Doubled, r.Gap)
		}
		for k, s := range r.Samples {
			if len(s) == 0 || s[len(s)-1] == infinite {
				t.Errorf("%s: %s has no sample, or one that was never answered", name, k)
			}
		}
	}
}

func TestVerdictIsTheMaximum(t *testing.T) {
	good := make([]time.Duration, 10000)
	r := &result{Samples: map[string][]time.Duration{"x": good}}
	if !r.pass() {
		t.Error("ten thousand good samples fail")
	}
	for name, worst := range map[string]time.Duration{"the limit itself": limit, "no answer": infinite} {
		good[len(good)-1] = worst
		if r.pass() {
			t.Errorf("passes with one sample of %s", name)
		}
	}
	if (&result{Samples: map[string][]time.Duration{"x": nil}}).pass() {
		t.Error("passes without samples")
	}
	if got := at([]time.Duration{1, 2, 3, 4}, .5); got != 2 {
		t.Errorf("p50 of 1..4 is %d", got)
	}
}
