// Command budget measures the 3 seconds of clauses 7.2 and 9.2: for each link
// and table the time from the making of a message to its verified answer, at
// the sender, on one monotonic clock. The load is an open loop, no sample is
// dropped, and a message without an answer counts as infinite; the verdict is
// the maximum. Beside it stands the largest distance between two identity
// reports as they were received.
//
//	go run ./bench/budget -n 10000 -out budget.out    every cell, the whole table
//	go run ./bench/budget -cells idle,delay200 -n 500
//
// Control center, gateways' and agents' links are the real ones, in one
// process. Cells without a network fault run over loopback sockets; those with
// delay, loss and vanishing connections over internal/memnet, where a chunk
// that is lost arrives a retransmission later. The raw samples are written as
// JSON, nanoseconds by link and table.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
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

func main() {
	n := flag.Int("n", 10000, "samples of each table of the link of clause 9, at least")
	rate := flag.Float64("rate", 100, "messages a second of each table")
	names := flag.String("cells", "", "comma-separated; default all but planted")
	out := flag.String("out", "", "folder for the raw samples; default none")
	flag.Parse()
	failed := false
	var all []*result
	for _, c := range cells {
		if *names == "" && c.name == "planted" || *names != "" && !slices.Contains(strings.Split(*names, ","), c.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "budget: %s, %d samples at %.0f a second\n", c.name, *n, *rate)
		r, err := measure(c, *n, *rate)
		if err != nil {
			fmt.Fprintln(os.Stderr, "budget:", err)
			os.Exit(1)
		}
		if *out != "" {
			if err := r.save(*out); err != nil {
				fmt.Fprintln(os.Stderr, "budget:", err)
				os.Exit(1)
			}
		}
		all = append(all, r)
		failed = failed || !r.pass()
	}
	print(all)
	if failed {
		os.Exit(2)
	}
}

// result is what one cell gave.
type result struct {
	Cell      string                     `json:"cell"`
	Samples   map[string][]time.Duration `json:"samples_ns"` // by link and table, sorted
	Outage    int                        `json:"outage"`     // messages made while the link was known to be down: the rules for buffered reports judge them
	Missing   int                        `json:"missing"`    // alerts that never arrived
	Doubled   int                        `json:"doubled"`
	Gap       time.Duration              `json:"identity_gap_ns"`
	Lost      uint64                     `json:"sessions_lost"`
	LastFault string                     `json:"last_fault,omitempty"`
	Notes     string                     `json:"notes,omitempty"`
}

func (r *result) pass() bool {
	for _, s := range r.Samples {
		if len(s) == 0 || s[len(s)-1] >= limit {
			return false
		}
	}
	return r.Missing == 0 && r.Doubled == 0 && r.Gap <= gapLimit
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

func print(all []*result) {
	fmt.Printf("%s, %d CPUs, %s\n", runtime.Version(), runtime.NumCPU(), runtime.GOARCH)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "cell\tlink and table\tsamples\tp50\tp99\tp99.9\tmax\tverdict")
	for _, r := range all {
		keys := make([]string, 0, len(r.Samples))
		for k := range r.Samples {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
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
		verdict := "ok"
		if r.Missing > 0 || r.Doubled > 0 || r.Gap > gapLimit {
			verdict = "FAIL"
		}
		fmt.Fprintf(w, "%s\tidentity gap %s, missing %d, doubled %d, in outages %d, sessions lost %d%s\t\t\t\t\t\t%s\n", r.Cell, show(r.Gap), r.Missing, r.Doubled, r.Outage, r.Lost, r.Notes, verdict)
	}
	w.Flush()
}
