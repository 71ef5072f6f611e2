package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/test/testbed"
)

func TestMain(m *testing.M) {
	if inRole() {
		return
	}
	os.Exit(m.Run())
}

// short measures a short form of one cell, in a process of its own.
func short(t *testing.T, name string, n int, rate float64) *result {
	t.Helper()
	if c, err := cellOf(name); err != nil {
		t.Fatal(err)
	} else if c.ns && os.Geteuid() != 0 {
		t.Skip("packets vanish in a network namespace: needs root")
	}
	r, err := isolated(options{Cell: name, N: n, Rate: rate, Quick: true})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	print(&b, []*result{r})
	t.Logf("\n%s", b.String())
	return r
}

// sound fails unless everything arrived, once, and had an answer. The maximum
// is judged by the long form, on a machine that has nothing else to do.
func sound(t *testing.T, r *result) {
	t.Helper()
	if r.Missing != 0 || r.Doubled != 0 || r.Gap > gapLimit {
		t.Errorf("%s: missing %d, doubled %d, identity gap %v", r.Cell, r.Missing, r.Doubled, r.Gap)
	}
	for _, k := range expected {
		if s := r.Samples[k]; len(s) == 0 || s[len(s)-1] == infinite {
			t.Errorf("%s: %s has no sample, or one that was never answered: %s", r.Cell, k, r.LastFault)
		}
	}
}

// A verdict that cannot be FAIL says nothing: a planted delay of 3.5 s is found,
// in the tables that it was planted in, and printed.
func TestGCR002_M48_M91_PlantedDelayFails(t *testing.T) {
	t.Parallel()
	r := short(t, "planted", 20, 20)
	s := r.Samples["agent-control T22"]
	if r.pass() || len(s) == 0 || s[len(s)-1] < limit {
		t.Errorf("a planted delay of 3.5 s was not found: %+v", r)
	}
	var b bytes.Buffer
	print(&b, []*result{r})
	for line := range strings.Lines(b.String()) {
		if strings.Contains(line, "T22") && strings.Contains(line, "FAIL") {
			return
		}
	}
	t.Errorf("the table does not say FAIL at T22:\n%s", b.String())
}

// The short forms: nothing is missing and nothing doubled. Those that take long
// are for the long tests.
func TestGCR002_M48_BudgetShortForm(t *testing.T) {
	t.Parallel()
	for _, c := range cells {
		if c.name == "planted" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			switch c.name {
			case "idle", "blackhole":
				sound(t, short(t, c.name, 80, 20))
				return
			}
			if !testbed.Long() {
				t.Skip("a long test: YUMEN_LONG=1")
			}
			r := short(t, c.name, 800, 30)
			sound(t, r)
			if (c.name == "restart" || c.name == "outage") && len(r.Back) == 0 {
				t.Error("there was no outage")
			}
		})
	}
}

func TestVerdictIsTheMaximum(t *testing.T) {
	r := &result{Samples: map[string][]time.Duration{}, Want: 10000}
	for _, k := range expected {
		r.Samples[k] = make([]time.Duration, 10000)
	}
	if !r.pass() {
		t.Errorf("ten thousand good samples fail: %v", r.faults())
	}
	s := r.Samples["agent-control T21"]
	for name, worst := range map[string]time.Duration{"the limit itself": limit, "no answer": infinite} {
		s[len(s)-1] = worst
		if r.pass() {
			t.Errorf("passes with one sample of %s", name)
		}
	}
	s[len(s)-1] = 0
	for name, spoil := range map[string]func(r *result){
		"a table without samples":  func(r *result) { r.Samples = map[string][]time.Duration{} },
		"too few samples":          func(r *result) { r.Want = 40000 },
		"one missing":              func(r *result) { r.Missing = 1 },
		"one doubled":              func(r *result) { r.Doubled = 1 },
		"a gap":                    func(r *result) { r.Gap = gapLimit + 1 },
		"a late return":            func(r *result) { r.Back = []time.Duration{0, limit} },
		"nothing after the outage": func(r *result) { r.Back = []time.Duration{infinite} },
	} {
		bad := *r
		spoil(&bad)
		if bad.pass() {
			t.Errorf("passes with %s", name)
		}
	}
	if got := at([]time.Duration{1, 2, 3, 4}, .5); got != 2 {
		t.Errorf("p50 of 1..4 is %d", got)
	}
}

// What was under way while there was no path is not held against the limit;
// what was made after it is, whatever the link knew.
func TestOnlyMessagesOfAnOutageAreBuffered(t *testing.T) {
	b := &bench{samples: map[string][]time.Duration{}}
	b.sample("x", time.Second, true)
	back := b.away()
	b.sample("x", 10*time.Second, true)
	b.sample("x", time.Second, false)
	back()
	b.sample("x", time.Minute, true) // made before it came back
	time.Sleep(5 * time.Millisecond)
	b.sample("x", time.Millisecond, true)
	b.sample("x", time.Millisecond, false)
	if got := b.samples["x"]; len(got) != 3 || got[2] != infinite || b.inAway != 3 {
		t.Errorf("judged %v, buffered %d, want 3 and 3", got, b.inAway)
	}
}

// Raw samples are written as JSON.
func TestRawSamplesAreWritten(t *testing.T) {
	dir := t.TempDir()
	r := &result{Cell: "x", Samples: map[string][]time.Duration{"agent-control T22": {1, 2, infinite}}}
	if err := r.save(dir); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "budget-x.json"))
	if err != nil || !bytes.Contains(raw, []byte(`"agent-control T22":[1,2,9223372036854775807]`)) {
		t.Errorf("%s %v", raw, err)
	}
}
