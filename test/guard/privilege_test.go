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

func mounted(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && uint32(st.Type) == unix.BPF_FS_MAGIC
}

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

// The gateway starts with the four capabilities that are documented, and none
// is left when it answers: no thread may gain one, calls of the system are
// filtered, and there is no core dump. The guard is switched on, kept, and off
// without any (S39).
func TestS39_TheGatewayGivesUpItsPrivileges(t *testing.T) {
	needRoot(t)
	s := newSite(t, "native")
	if err := s.Gateway.Stop(); err != nil {
		t.Logf("gateway: %v", err)
	}
	if !mounted(s.pins) { // systemd mounts it, here the first start did
		t.Fatal("bpffs is not mounted")
	}
	bounded(t, minimal, s.StartGateway)
	s.connected(t)
	look := func(when string) {
		t.Helper()
		threads(t, s.Gateway.PID(), func(name string, f map[string]string) {
			for _, k := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
				if f[k] != "0000000000000000" {
					t.Errorf("%s: %s: %s is %s", when, name, k, f[k])
				}
			}
			if f["NoNewPrivs"] != "1" || f["Seccomp"] != "2" {
				t.Errorf("%s: %s: NoNewPrivs %s, Seccomp %s", when, name, f["NoNewPrivs"], f["Seccomp"])
			}
		})
	}
	look("after the start")
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", s.Gateway.PID()))
	if err != nil || !coreLine.Match(limits) {
		t.Errorf("core dumps: %v: %s", err, limits)
	}
	for _, words := range [][]string{{"on"}, {"confirm"}, {"status"}, {"off"}, {"on"}, {"confirm"}} {
		if out, err := s.verb(t, "", append([]string{"guard"}, words...)...); err != nil {
			t.Fatalf("guard %s: %v: %s", words[0], err, out)
		}
	}
	s.r.shut(t, "the guard is on", at(gw4, 2222))
	look("with the guard on")
	if g := s.guard(t); !g.On || !g.Pinned || g.Mode != "native" {
		t.Errorf("%+v", g)
	}
}
