package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// limit is the delay that the standard allows a message, and gapLimit the
// distance between two identity reports.
const (
	limit    = 3 * time.Second
	gapLimit = 60 * time.Second
)

// infinite is the time of a message that had no answer.
const infinite = time.Duration(math.MaxInt64)

// expected are the links and tables that every cell has samples of.
var expected = []string{"gateway-control T4", "gateway-control T10", "gateway-control T11", "agent-control T16", "agent-control T21", "agent-control T22", "control-gateway T7"}

// result is what one cell gave.
type result struct {
	Cell      string                     `json:"cell"`
	Begin     time.Time                  `json:"begin"`
	Took      time.Duration              `json:"took_ns"`
	Want      int                        `json:"want"`            // samples of each link that reports
	Load      string                     `json:"load"`            // load average of the machine at the end
	Samples   map[string][]time.Duration `json:"samples_ns"`      // by link and table, sorted
	Buffered  int                        `json:"buffered"`        // messages made before the path was back: the rules for buffered reports judge them
	Back      []time.Duration            `json:"back_ns"`         // by outage and sender: from the path's return to the arrival of the first alert made after it
	Missing   int                        `json:"missing"`         // alerts that never arrived
	Doubled   int                        `json:"doubled"`         // that arrived more than once
	Gap       time.Duration              `json:"identity_gap_ns"` // largest distance between two identity reports of one party, as received
	Lost      uint64                     `json:"sessions_lost"`
	Hedges    uint64                     `json:"hedges"` // messages sent again
	LastFault string                     `json:"last_fault,omitempty"`
	Notes     []string                   `json:"notes,omitempty"` // what the load did
}

// link returns how many samples a link has.
func (r *result) link(name string) (n int) {
	for k, s := range r.Samples {
		if strings.HasPrefix(k, name+" ") {
			n += len(s)
		}
	}
	return n
}

// faults says why r fails, beyond single tables.
func (r *result) faults() (out []string) {
	add := func(bad bool, format string, args ...any) {
		if bad {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	for _, l := range []string{"gateway-control", "agent-control"} {
		add(r.link(l)+r.Buffered < r.Want, "only %d samples of %s", r.link(l), l)
	}
	add(r.Missing > 0, "%d missing", r.Missing)
	add(r.Doubled > 0, "%d doubled", r.Doubled)
	add(r.Gap > gapLimit, "identity gap %v", r.Gap)
	for _, d := range r.Back {
		add(d >= limit, "first alert after an outage after %s", show(d))
	}
	return out
}

func (r *result) pass() bool {
	for _, k := range expected {
		if s := r.Samples[k]; len(s) == 0 || s[len(s)-1] >= limit {
			return false
		}
	}
	return len(r.faults()) == 0
}

func (r *result) save(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "budget-"+r.Cell+".json"), b, 0o644)
}

// at returns the q-th quantile of sorted samples.
func at(s []time.Duration, q float64) time.Duration {
	return s[min(len(s)-1, int(math.Ceil(q*float64(len(s))))-1)]
}

func show(d time.Duration) string {
	if d == infinite {
		return "never"
	}
	return d.Round(10 * time.Microsecond).String()
}

// print writes one table of all cells.
func print(out io.Writer, all []*result) {
	fmt.Fprintf(out, "%s, %d CPUs, %s\n", runtime.Version(), runtime.NumCPU(), runtime.GOARCH)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "cell\tlink and table\tsamples\tp50\tp99\tp99.9\tmax\tverdict")
	for _, r := range all {
		for _, k := range expected {
			s := r.Samples[k]
			verdict := "ok"
			if len(s) == 0 {
				fmt.Fprintf(w, "%s\t%s\t0\t\t\t\t\tFAIL\n", r.Cell, k)
				continue
			}
			if s[len(s)-1] >= limit {
				verdict = "FAIL"
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", r.Cell, k, len(s), show(at(s, .5)), show(at(s, .99)), show(at(s, .999)), show(s[len(s)-1]), verdict)
		}
		w.Flush()
		verdict := "ok"
		if f := r.faults(); len(f) > 0 {
			verdict = "FAIL: " + strings.Join(f, ", ")
		}
		fmt.Fprintf(out, "%s: identity gap %s, missing %d, doubled %d, hedges %d, sessions lost %d, load %s", r.Cell, show(r.Gap), r.Missing, r.Doubled, r.Hedges, r.Lost, r.Load)
		if len(r.Back) > 0 {
			fmt.Fprintf(out, ", %d buffered, %d returns with the first alert after %s at most", r.Buffered, len(r.Back), show(slices.Max(r.Back)))
		}
		for _, n := range r.Notes {
			fmt.Fprintf(out, ", %s", n)
		}
		if r.Lost > 0 {
			fmt.Fprintf(out, ", the last for %q", r.LastFault)
		}
		fmt.Fprintf(out, ": %s\n", verdict)
	}
}
