package ctlclient

import (
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// cpuTicks reads the first line of /proc/stat: user nice system idle iowait irq
// softirq steal guest guest_nice. guest is in user already.
func cpuTicks() (busy, idle uint64, ok bool) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, false
	}
	line, _, _ := bytes.Cut(raw, []byte{'\n'})
	f := bytes.Fields(line)
	if len(f) < 8 || string(f[0]) != "cpu" {
		return 0, 0, false
	}
	for i, s := range f[1:min(len(f), 9)] {
		n, err := strconv.ParseUint(string(s), 10, 64)
		if err != nil {
			return 0, 0, false
		}
		if i == 3 || i == 4 {
			idle += n
		} else {
			busy += n
		}
	}
	return busy, idle, true
}

// memoryUsage is the share of memory that is not available, by /proc/meminfo.
func memoryUsage() float64 {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return -1
	}
	total, available := meminfo(raw, "MemTotal:"), meminfo(raw, "MemAvailable:")
	if total <= 0 || available < 0 {
		return -1
	}
	return 100 * float64(total-available) / float64(total)
}

func meminfo(raw []byte, name string) int64 {
	for line := range bytes.Lines(raw) {
		if rest, ok := bytes.CutPrefix(line, []byte(name)); ok {
			f := bytes.Fields(rest)
			if len(f) > 0 {
				if n, err := strconv.ParseInt(string(f[0]), 10, 64); err == nil {
					return n
				}
			}
		}
	}
	return -1
}

// diskUsage is the used share of what users can use, as df has it.
func diskUsage(dir string) float64 {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return -1
	}
	used := s.Blocks - s.Bfree
	if used+s.Bavail == 0 {
		return -1
	}
	return 100 * float64(used) / float64(used+s.Bavail)
}
