//go:build linux

// Command xdp measures the guard beside what else drops packets, in one
// interleaved run, and prints tables in Markdown: the CPU time of a packet that
// nobody admitted on a veth, the time of tokens in the program alone, and what
// a flood leaves of an established connection. README.md tells the method.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	rounds := flag.Int("rounds", 12, "interleaved rounds; the least of each counts")
	packets := flag.Int("packets", 400_000, "packets of a round")
	entries := flag.Int("entries", 1_000_000, "entries in each map of the full guard")
	flood := flag.Int("flood", 315_000, "packets a second of the flood")
	length := flag.Duration("length", 2*time.Second, "of each measurement of goodput")
	pairs := flag.Int("pairs", 7, "calm and stormy measurements of goodput; the medians count")
	most := flag.Float64("most", 50, "MB/s of the paced connection at most")
	only := flag.String("only", "", "one part: veth, program or goodput")
	flag.Parse()
	part := func(name string, run func() error) {
		if *only != "" && *only != name {
			return
		}
		if err := run(); err != nil {
			fmt.Fprintf(os.Stderr, "bench/xdp: %s: %v\n", name, err)
			os.Exit(1)
		}
	}
	machine()
	part("veth", func() error { return veth(*rounds, *packets, *entries) })
	part("program", func() error { return program(*rounds * 10) })
	part("goodput", func() error { return goodput(*flood, *pairs, *most*1e6, *length) })
}

// machine prints where and with what was measured.
func machine() {
	var u unix.Utsname
	_ = unix.Uname(&u)
	model := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				model = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
				break
			}
		}
	}
	version := func(words ...string) string {
		out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
		if len(out) == 0 && err != nil {
			return words[0] + " absent"
		}
		first, _, _ := strings.Cut(string(out), "\n")
		return strings.TrimSpace(first)
	}
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("%s; Linux %s; %s; %s; load %s\n", model, unix.ByteSliceToString(u.Release[:]), version("nft", "--version"), version("xdp-filter", "status", "--version"), strings.Join(strings.Fields(string(load))[:3], " "))
}

// least returns the least and the median.
func least(all []float64) (low, middle float64) {
	all = slices.Sorted(slices.Values(all))
	return all[0], all[len(all)/2]
}
