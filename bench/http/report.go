//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/gateway"
	"github.com/yumen-zt/yumen/internal/adminsock"
)

// report gathers what was measured.
type report struct {
	b         *bench
	load      string // load average at the start
	samples   map[*workload]map[*peer][]sample
	idle      map[*peer]idle
	many      *many
	idleConns int
	peak      map[*peer]int // KiB
	asked     uint64        // requests to Yumen
	status    gateway.Status
}

func newReport(b *bench) *report {
	return &report{b: b, load: loadAverage(), samples: map[*workload]map[*peer][]sample{}, idle: map[*peer]idle{}, peak: map[*peer]int{}}
}

func (r *report) add(w *workload, p *peer, s sample) {
	if r.samples[w] == nil {
		r.samples[w] = map[*peer][]sample{}
	}
	r.samples[w][p] = append(r.samples[w][p], s)
	if p == r.yumen() {
		r.asked += uint64(s.requests)
	}
}

func (r *report) yumen() *peer { return r.b.peers[len(r.b.peers)-1] }

// measured reports whether anything of p was.
func (r *report) measured(p *peer) bool {
	for _, got := range r.samples {
		if len(got[p]) > 0 {
			return true
		}
	}
	return false
}

// of returns the samples of a workload.
func (r *report) of(name string) map[*peer][]sample {
	for w, got := range r.samples {
		if w.name == name {
			return got
		}
	}
	return nil
}

// named returns the peer of a name, or nil.
func (r *report) named(name string) *peer {
	for _, p := range r.b.peers {
		if p.name == name {
			return p
		}
	}
	return nil
}

// memory reads the most that each peer has held.
func (r *report) memory() error {
	for _, p := range r.b.peers {
		kib, err := p.memory("VmHWM")
		if err != nil {
			return err
		}
		r.peak[p] = kib
	}
	return nil
}

// audit asks Yumen what it recorded: a gateway that drops records has not done
// the work that is measured here.
func (r *report) audit(ctx context.Context) error {
	return adminsock.NewClient(r.b.at("state/admin.sock")).Do(ctx, "GET", "/status", nil, &r.status)
}

// spread is a median with its range.
type spread struct{ median, least, most float64 }

func spreadOf(v []float64) spread {
	if len(v) == 0 {
		return spread{}
	}
	v = slices.Sorted(slices.Values(v))
	m := v[len(v)/2]
	if len(v)%2 == 0 {
		m = (m + v[len(v)/2-1]) / 2
	}
	return spread{m, v[0], v[len(v)-1]}
}

func (s spread) text(digits int) string {
	return fmt.Sprintf("%.*f [%.*f-%.*f]", digits, s.median, digits, s.least, digits, s.most)
}

func figures(samples []sample, f func(sample) float64) []float64 {
	var out []float64
	for _, s := range samples {
		out = append(out, f(s))
	}
	return out
}

// ratio is that of two peers in the same round, over the rounds.
func ratio(a, b []sample, f func(sample) float64) spread {
	var out []float64
	for i := range min(len(a), len(b)) {
		if d := f(b[i]); d > 0 {
			out = append(out, f(a[i])/d)
		}
	}
	return spreadOf(out)
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func cell(s spread, digits int) string {
	if s.most == 0 {
		return "–"
	}
	return s.text(digits)
}

// print writes the report as Markdown.
func (r *report) print(ctx context.Context, to io.Writer) error {
	var out strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) }
	table := func(title string, digits int, f func(sample) float64, keep func(*workload) bool) {
		line("\n### %s\n", title)
		others := slices.DeleteFunc(slices.Clone(r.b.peers), func(p *peer) bool { return p == r.yumen() || !r.measured(p) })
		head, rule := "| work |", "|---|---|"
		for _, p := range others {
			head, rule = head+" "+p.name+" |", rule+"---|---|"
		}
		head += " Yumen |"
		for _, p := range others {
			head += " Yumen / " + p.name + " |"
		}
		line("%s\n%s", head, rule)
		for _, w := range workloads {
			got := r.samples[w]
			if got == nil || !keep(w) {
				continue
			}
			cells := []string{w.text}
			for _, p := range append(others, r.yumen()) {
				cells = append(cells, cell(spreadOf(figures(got[p], f)), digits))
			}
			y := got[r.yumen()]
			for _, p := range others {
				cells = append(cells, cell(ratio(y, got[p], f), 2))
			}
			line("| %s |", strings.Join(cells, " | "))
		}
	}
	all := func(*workload) bool { return true }
	timed := func(w *workload) bool { return w.direct }
	rounds := 0
	for _, s := range r.samples {
		rounds = max(rounds, len(s[r.yumen()]))
	}
	line("%s.\n\n%s", machine(ctx), r.goals())
	line("Median [least-most] of %d interleaved rounds; ratios are of pairs in the same round.", rounds)
	table("CPU time of the gateway for one request, µs", 1, func(s sample) float64 { return micros(s.cpu) }, all)
	table("of which outside the kernel, µs", 1, func(s sample) float64 { return micros(s.user) }, all)
	table("Requests a second", 0, func(s sample) float64 { return s.rate }, func(w *workload) bool { return !w.direct })
	table("Time to the answer, median, µs", 0, func(s sample) float64 { return micros(s.p50) }, timed)
	table("Time to the answer, 99 of 100, µs", 0, func(s sample) float64 { return micros(s.p99) }, timed)
	for _, w := range workloads {
		if s := r.samples[w][r.b.direct]; len(s) > 0 {
			line("\nWithout a gateway and TLS: median %s µs, 99 of 100 %s µs.",
				spreadOf(figures(s, func(s sample) float64 { return micros(s.p50) })).text(0),
				spreadOf(figures(s, func(s sample) float64 { return micros(s.p99) })).text(0))
		}
	}
	head, rule := "| |", "|---|"
	for _, p := range r.b.peers {
		head, rule = head+" "+p.name+" |", rule+"---|"
	}
	line("\n### Memory\n\n%s\n%s", head, rule)
	memory := func(text string, of func(*peer) float64) {
		row := "| " + text + " |"
		for _, p := range r.b.peers {
			row += fmt.Sprintf(" %.1f |", of(p))
		}
		line("%s", row)
	}
	if r.idleConns > 0 {
		memory(fmt.Sprintf("KiB for an idle connection after 1 KiB (of %d)", r.idleConns), func(p *peer) float64 { return r.idle[p].small })
		memory("KiB for one after 100 KiB", func(p *peer) float64 { return r.idle[p].large })
	}
	memory("most resident memory, MiB", func(p *peer) float64 { return float64(r.peak[p]) / 1024 })

	var own, others []float64
	for _, got := range r.samples {
		for _, p := range r.b.peers {
			own = append(own, figures(got[p], func(s sample) float64 { return 100 * s.own })...)
			others = append(others, figures(got[p], func(s sample) float64 { return 100 * s.others })...)
		}
	}
	line("\nThe gateway had %s %% of its core, others had %s %% of it. Load average %s at the start, %s at the end.",
		spreadOf(own).text(0), spreadOf(others).text(0), r.load, loadAverage())
	line("Yumen answered %d requests, wrote %d audit records and dropped %d.", r.asked, r.status.Audit.Written, r.status.Audit.Dropped)
	_, err := io.WriteString(to, out.String())
	return err
}
