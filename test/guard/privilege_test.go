package guard

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// minimal are the capabilities that the unit in docs/operations.md gives.
var minimal = []int{unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON, unix.CAP_NET_BIND_SERVICE}

// bounded runs f on a thread whose children have no capabilities but those.
func bounded(t *testing.T, keep []int, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never given back: its bound is another
		for n := range unix.CAP_LAST_CAP + 1 {
			if slices.Contains(keep, n) {
				continue
			}
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
				t.Errorf("drop capability %d: %v", n, err)
			}
		}
		f()
	}()
	<-done
}

var coreLine = regexp.MustCompile(`(?m)^Max core file size +0 +0 `)

// threads returns fields of every thread of a process.
func threads(t *testing.T, pid int, check func(name string, fields map[string]string)) {
	t.Helper()
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(all) < 2 {
		t.Fatalf("%d threads: %v", len(all), err)
	}
	for _, name := range all {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		fields := map[string]string{}
		for line := range strings.SplitSeq(string(raw), "\n") {
			k, v, _ := strings.Cut(line, ":")
			fields[k] = strings.TrimSpace(v)
		}
		check(name, fields)
	}
}

// unprivileged demands that the gateway has no capability left on any thread
// and may gain none, that calls of the system are filtered, and that there is
// no core dump. In nftables it keeps CAP_NET_ADMIN.
func (s *site) unprivileged(t *testing.T, when, mode string) {
	t.Helper()
	want := "0000000000000000"
	if mode == "nftables" {
		want = "0000000000001000"
	}
	threads(t, s.Gateway.PID(), func(name string, f map[string]string) {
		for k, v := range map[string]string{"CapInh": "0000000000000000", "CapPrm": want, "CapEff": want, "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"} {
			if f[k] != v {
				t.Errorf("%s: %s: %s is %s, not %s", when, name, k, f[k], v)
			}
		}
	})
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", s.Gateway.PID()))
	if err != nil || !coreLine.Match(limits) {
		t.Errorf("core dumps: %v: %s", err, limits)
	}
}
