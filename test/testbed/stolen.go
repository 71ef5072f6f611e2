package testbed

import (
	"os"
	"strconv"
	"strings"
)

// Stolen returns the time that the hypervisor has kept processors from this
// machine since it started, in ticks of 10 ms (proc(5), /proc/stat, steal). A
// timed test tells by it which of its rounds the machine was there for.
func Stolen() int {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	f := strings.Fields(line)
	if len(f) < 9 {
		return 0
	}
	n, err := strconv.Atoi(f[8])
	if err != nil {
		return 0
	}
	return n
}
