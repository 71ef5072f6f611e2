//go:build linux

// Command tlcp measures our TLCP against Go's TLS 1.3 and against the bare
// cipher, in one interleaved run, and prints a table in Markdown. README.md
// tells the method.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	rounds := flag.Int("rounds", 7, "rounds; the median and the range of their ratios count")
	limit := flag.Duration("limit", 4*time.Minute, "rounds that do not fit into it are left out")
	serverCore := flag.Int("server-core", 0, "core of the side that is measured")
	clientCore := flag.Int("client-core", 1, "core of its peer")
	only := flag.String("only", "", "one part: handshake, bulk or pingpong, without the idle connections")
	profile := flag.String("cpuprofile", "", "write a CPU profile of both ends to this file")
	idle := flag.Bool("idle-server", false, "be the server whose idle connections are measured (used by the program itself)")
	flag.Parse()
	var err error
	if *idle {
		err = idleServer()
	} else {
		err = profiled(*profile, func() error { return run(*rounds, *limit, cores{*serverCore, *clientCore}, *only) })
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/tlcp:", err)
		os.Exit(1)
	}
}

// cores are where the two ends of every connection run.
type cores struct{ server, client int }

// pin keeps the calling goroutine on a thread of its own on core, until the
// goroutine ends.
func pin(core int) error {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(core)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin a thread to core %d: %w", core, err)
	}
	return nil
}

// threadCPU returns the CPU time of the calling thread, of user and kernel.
func threadCPU() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err) // the clock is always there
	}
	return time.Duration(t.Nano())
}

// row is a line of the table: the values of all rounds and what is wanted.
type row struct {
	name, unit string
	values     []float64
	goal       float64
	atLeast    bool // otherwise at most
	none       bool // no goal
}

func (r *row) add(v float64) { r.values = append(r.values, v) }

func (r *row) median() float64 {
	s := slices.Sorted(slices.Values(r.values))
	return s[len(s)/2]
}

func (r *row) String() string {
	digits := 3
	if r.unit != "" {
		digits = 1
	}
	num := func(v float64) string { return fmt.Sprintf("%.*f%s", digits, v, r.unit) }
	goal, met := "", ""
	if !r.none {
		sign, ok := "≤ ", r.median() <= r.goal
		if r.atLeast {
			sign, ok = "≥ ", r.median() >= r.goal
		}
		goal, met = sign+fmt.Sprintf("%g%s", r.goal, r.unit), "**missed**"
		if ok {
			met = "met"
		}
	}
	return fmt.Sprintf("| %s | %s | %s - %s | %s | %s |", r.name, num(r.median()), num(slices.Min(r.values)), num(slices.Max(r.values)), goal, met)
}

func profiled(file string, f func() error) error {
	if file == "" {
		return f()
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(out); err != nil {
		return errors.Join(err, out.Close())
	}
	err = f()
	pprof.StopCPUProfile()
	return errors.Join(err, out.Close())
}

func run(rounds int, limit time.Duration, on cores, only string) error {
	if runtime.NumCPU() < 2 {
		return errors.New("two cores are needed, one for each end")
	}
	m, err := newMaterial()
	if err != nil {
		return err
	}
	var rows []*row
	begin, load := time.Now(), loadAverage()
	var parts []part
	for _, p := range []struct {
		name string
		open func() part
	}{
		{"handshake", func() part { return newHandshakes(m, on) }},
		{"bulk", func() part { return newBulk(m, on) }},
		{"pingpong", func() part { return newPingPong(m, on) }},
	} {
		if only == "" || only == p.name {
			parts = append(parts, p.open())
		}
	}
	for _, p := range parts {
		rows = append(rows, p.rows()...)
		defer p.close()
	}
	done := 0
	for ; done < rounds; done++ {
		if spent := time.Since(begin); done > 2 && spent+spent/time.Duration(done) > limit {
			break
		}
		for _, p := range parts {
			if err := p.round(); err != nil {
				return err
			}
		}
	}
	if only == "" {
		memory, err := idleMemory()
		if err != nil {
			return err
		}
		rows = append(rows, memory...)
	}
	fmt.Printf("%s, %s, %d rounds in %s, load average %s before and %s behind\n\n", cpuModel(), runtime.Version(), done, time.Since(begin).Round(time.Second), load, loadAverage())
	fmt.Println("| what | median | least - most | goal | |\n|---|---|---|---|---|")
	for _, r := range rows {
		fmt.Println(r)
	}
	return nil
}

// part is one subject of the measurement; its rounds take turns with those of
// the others.
type part interface {
	rows() []*row
	round() error
	close()
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, ok := strings.CutPrefix(s.Text(), "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return runtime.GOARCH
}
