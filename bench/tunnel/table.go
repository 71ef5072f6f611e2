//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// table collects measurements by round: the n-th of a subject belongs to round n.
type table struct {
	bulk, rtt map[string][]*result
	rows      []string
}

func newTable() *table {
	return &table{bulk: map[string][]*result{}, rtt: map[string][]*result{}}
}

func (t *table) add(r *result) {
	if r.Kind == "bulk" {
		t.bulk[r.Subject] = append(t.bulk[r.Subject], r)
	} else {
		t.rtt[r.Subject] = append(t.rtt[r.Subject], r)
	}
}

// row adds a line of its own: a figure that is no ratio of subjects.
func (t *table) row(what, figure, goal, verdict string) {
	t.rows = append(t.rows, fmt.Sprintf("| %s | %s | %s | %s |", what, figure, goal, verdict))
}

func cpu(r *result) float64        { return (r.TX + r.RX) / float64(r.MiB) * 1024 }
func sending(r *result) float64    { return r.TX / float64(r.MiB) * 1024 }
func throughput(r *result) float64 { return float64(r.MiB) * 8 * 1.048576e6 / r.Seconds / 1e9 }
func median(r *result) float64     { return r.Seconds * 1e6 }

// ratio adds a line with the median and the range of a/b inside the rounds.
func (t *table) ratio(what string, from map[string][]*result, a, b string, f func(*result) float64, goal float64, atLeast bool) {
	x, y := from[a], from[b]
	n := min(len(x), len(y))
	if n == 0 {
		return
	}
	v := make([]float64, n)
	for i := range n {
		v[i] = f(x[i]) / f(y[i])
	}
	slices.Sort(v)
	m := v[n/2]
	sign, met := "≤", m <= goal
	if atLeast {
		sign, met = "≥", m >= goal
	}
	verdict := "missed"
	if met {
		verdict = "met"
	}
	t.row(what, fmt.Sprintf("%.3f [%.3f - %.3f]", m, v[0], v[n-1]), fmt.Sprintf("%s %.2f", sign, goal), verdict)
}

func (t *table) print(w io.Writer) error {
	t.ratio("bulk TLCP + mux / bare TCP sealed with SM4-GCM, CPU s/GiB of both sides", t.bulk, "tlcp+mux", "sealed", cpu, 1.05, false)
	t.ratio("the same, TLCP alone", t.bulk, "tlcp", "sealed", cpu, 1.05, false)
	t.ratio("the same, the mux alone: on the sealed stream", t.bulk, "sealed+mux", "sealed", cpu, 1.05, false)
	for _, peer := range []string{"yamux", "smux"} {
		t.ratio("bulk over TLS, throughput of the mux / "+peer, t.bulk, "tls+mux", "tls+"+peer, throughput, 1.2, true)
		t.ratio("the same by CPU, "+peer+" / the mux", t.bulk, "tls+"+peer, "tls+mux", cpu, 1.2, true)
		t.ratio("bulk over TLCP, throughput of the mux / "+peer, t.bulk, "tlcp+mux", "tlcp+"+peer, throughput, 1, true)
	}
	t.ratio("bulk TLCP + mux / OpenVPN AES-128-GCM, throughput", t.bulk, "tlcp+mux", "openvpn", throughput, 2, true)
	t.ratio("bulk TLS + mux / OpenVPN AES-128-GCM, throughput", t.bulk, "tls+mux", "openvpn", throughput, 2, true)
	for _, c := range []string{"tlcp", "tls"} {
		t.ratio("round trip of 64 B, "+c+" + mux / "+c, t.rtt, c+"+mux", c, median, 1.3, false)
	}
	fmt.Fprintf(w, "load %s\n\n| what | figure | goal | |\n|---|---|---|---|\n%s\n", load(), strings.Join(t.rows, "\n"))
	if len(t.bulk) > 0 {
		fmt.Fprintf(w, "\n| subject | Gbit/s | CPU s/GiB tx | rx | round trip p50 µs | p99 µs |\n|---|---|---|---|---|---|\n")
	}
	for _, s := range append(slices.Clone(subjects), "openvpn", "wireguard-go") {
		if len(t.bulk[s]) == 0 && len(t.rtt[s]) == 0 {
			continue
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", s, mid(t.bulk[s], throughput, 2), mid(t.bulk[s], sending, 3),
			mid(t.bulk[s], func(r *result) float64 { return cpu(r) - sending(r) }, 3), mid(t.rtt[s], median, 1), mid(t.rtt[s], func(r *result) float64 { return r.P99 * 1e6 }, 1))
	}
	return nil
}

func mid(rs []*result, f func(*result) float64, digits int) string {
	if len(rs) == 0 {
		return "–"
	}
	v := make([]float64, len(rs))
	for i, r := range rs {
		v[i] = f(r)
	}
	slices.Sort(v)
	return fmt.Sprintf("%.*f", digits, v[len(v)/2])
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}
