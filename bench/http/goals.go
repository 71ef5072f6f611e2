//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// goal is one line of the table that matters.
type goal struct {
	text   string
	most   float64
	figure func(*report) (spread, bool) // false: not measured
}

func cpuRatio(w, other string) func(*report) (spread, bool) {
	return func(r *report) (spread, bool) {
		got := r.of(w)
		s := ratio(got[r.yumen()], got[r.named(other)], func(s sample) float64 { return micros(s.cpu) })
		return s, s.median > 0
	}
}

var goals = []goal{
	{"CPU time, h1, 1 KiB, of nginx's", 0.85, cpuRatio("h1-1k", "nginx")},
	{"CPU time, h1, 100 KiB, of nginx's", 1.0, cpuRatio("h1-100k", "nginx")},
	{"CPU time, h2, 1 KiB, of haproxy's", 1.0, cpuRatio("h2-1k", "haproxy")},
	{"CPU time, h2, 1 KiB, of net/http's", 0.3, cpuRatio("h2-1k", "net/http")},
	{"CPU time, full handshake, of haproxy's", 0.85, cpuRatio("handshake", "haproxy")},
	{"CPU time with an access log, h1, 1 KiB, of that without", 1.05, func(r *report) (spread, bool) {
		got := r.of("h1-1k")
		s := ratio(got[r.named(logged)], got[r.yumen()], func(s sample) float64 { return micros(s.cpu) })
		return s, s.median > 0
	}},
	{"time added to 99 of 100, of nginx's", 1.0, addedTime},
	{"idle connection after a small answer, KiB", 14, func(r *report) (spread, bool) { return one(r.idle[r.yumen()].small), r.idleConns > 0 }},
	{"idle connection after a large answer, KiB", 24, func(r *report) (spread, bool) { return one(r.idle[r.yumen()].large), r.idleConns > 0 }},
	{"requests that failed over 10,000 connections", 0, func(r *report) (spread, bool) {
		if r.many == nil {
			return spread{}, false
		}
		return one(float64(r.many.failed + r.many.conns - manyConns)), true
	}},
}

func one(v float64) spread { return spread{v, v, v} }

// addedTime compares what Yumen and nginx add to the time without a gateway, in
// the same round.
func addedTime(r *report) (spread, bool) {
	got := r.of("rate")
	y, n, d := got[r.yumen()], got[r.named("nginx")], got[r.b.direct]
	var out []float64
	for i := range min(len(y), len(n), len(d)) {
		if base := n[i].p99 - d[i].p99; base > 0 {
			out = append(out, float64(y[i].p99-d[i].p99)/float64(base))
		}
	}
	return spreadOf(out), len(out) > 0
}

// goals returns the table of goals as Markdown.
func (r *report) goals() string {
	var out strings.Builder
	out.WriteString("| goal | at most | measured | met |\n|---|---|---|---|\n")
	for _, g := range goals {
		s, ok := g.figure(r)
		if !ok {
			continue
		}
		met := "no"
		if s.median <= g.most {
			met = "yes"
		}
		fmt.Fprintf(&out, "| %s | %g | %s | %s |\n", g.text, g.most, s.text(2), met)
	}
	if m := r.many; m != nil {
		fmt.Fprintf(&out, "\n%d connections were opened in %v; %d requests over them were answered in %v and %d were not; the gateway held %d MiB.\n",
			m.conns, m.opened.Round(time.Millisecond), m.served, m.took.Round(time.Millisecond), m.failed, m.resident/1024)
	}
	return out.String()
}

// machine says where this was measured, and against what.
func machine(ctx context.Context) string {
	cpu, cores := "unknown processor", 0
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(raw)) {
			if name, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(v)
				cores++ // runtime.NumCPU is what this process may use
			}
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	parts := []string{fmt.Sprintf("%s, %d cores", cpu, cores), "Linux " + strings.TrimSpace(string(kernel)), runtime.Version()}
	for _, c := range [][]string{{"nginx", "-v"}, {"haproxy", "-v"}, {"caddy", "version"}, {"openssl", "version"}} {
		out, err := exec.CommandContext(ctx, c[0], c[1:]...).CombinedOutput()
		if err != nil {
			continue
		}
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		if !strings.Contains(strings.ToLower(line), c[0]) {
			line = c[0] + " " + line
		}
		parts = append(parts, strings.TrimPrefix(line, "nginx version: "))
	}
	return strings.Join(parts, "; ")
}
