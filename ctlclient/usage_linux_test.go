package ctlclient

import (
	"math"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The figures of Table 10 are the host's: memory by /proc/meminfo, disk as df
// has it, processors by work that this test does.
func TestGCR002_M62_UsageIsTheHosts(t *testing.T) {
	p := NewProbe("/")
	var done atomic.Bool
	for range runtime.NumCPU() {
		go func() {
			for !done.Load() { // keeps a processor busy
			}
		}()
	}
	spin := time.NewTimer(400 * time.Millisecond)
	<-spin.C
	u := p.Usage()
	done.Store(true)
	if u.CPU < 60 || u.CPU > 100 {
		t.Errorf("CPU %.1f%% while every processor was busy", u.CPU)
	}

	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	kb := func(name string) float64 {
		m := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+) kB`).FindSubmatch(raw)
		if m == nil {
			t.Fatalf("no %s in /proc/meminfo", name)
		}
		n, _ := strconv.ParseFloat(string(m[1]), 64)
		return n
	}
	if want := 100 * (1 - kb("MemAvailable")/kb("MemTotal")); math.Abs(u.Memory-want) > 5 {
		t.Errorf("memory %.1f%%, /proc/meminfo says %.1f%%", u.Memory, want)
	}
	out, err := exec.Command("df", "--output=pcent", "/").Output()
	if err != nil {
		t.Fatal(err)
	}
	want, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(string(out)), "Use%")), "%"), 64)
	if err != nil || math.Abs(u.Disk-want) > 2 {
		t.Errorf("disk %.1f%%, df says %.0f%% (%v)", u.Disk, want, err)
	}
	if d := NewProbe("/no such folder").Usage().Disk; d >= 0 {
		t.Errorf("disk of a folder that is not there: %.1f%%", d)
	}
}
