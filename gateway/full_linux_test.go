package gateway

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/wire"
)

// metric returns the value of a metric with these labels, as "label=value",
// and whether it is there.
func (w *world) metric(name string, labels ...string) (float64, bool) {
	w.t.Helper()
	all, err := w.g.registry.Gather()
	must(w.t, err)
	for _, f := range all {
		if f.GetName() != name {
			continue
		}
	next:
		for _, m := range f.Metric {
			var have []string
			for _, l := range m.Label {
				have = append(have, l.GetName()+"="+l.GetValue())
			}
			for _, l := range labels {
				if !strings.Contains(" "+strings.Join(have, " ")+" ", " "+l+" ") {
					continue next
				}
			}
			if m.Gauge != nil {
				return m.Gauge.GetValue(), true
			}
			return m.Counter.GetValue(), true
		}
	}
	return 0, false
}

func (c *center) count(kind, part string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := map[string]bool{}
	for _, m := range c.got {
		if m.Header.MsgType == kind && strings.Contains(string(m.Body), part) && !seen[m.Header.MsgID] {
			seen[m.Header.MsgID] = true
			n++
		}
	}
	return n
}

// The outbox's figures are metrics.
func TestOutboxMetrics(t *testing.T) {
	w := newWorld(t)
	c := w.center(twoApps)
	c.set(wire.GrantsList, 1, w.list(w.control, gwID, wire.GrantsList, 1, user+" "+dev+" "+app1))
	c.set(wire.PoliciesList, 1, w.list(w.control, gwID, wire.PoliciesList, 1))
	w.start()
	await(t, 30*time.Second, "the lists", func() bool { return w.g.access.Stats().Rows == 1 })
	await(t, 30*time.Second, "an empty outbox on disk", func() bool {
		n, ok := w.metric("yumen_outbox_pending_records", "class=status")
		m, _ := w.metric("yumen_outbox_memory")
		return ok && n == 0 && m == 0
	})
	if age, ok := w.metric("yumen_outbox_oldest_age_seconds", "class=status"); !ok || age > 60 {
		t.Errorf("age of a class that was just emptied: %v %v", age, ok)
	}
	c.stop()
	for i := range 3 {
		w.g.link.Raise(alert.Alert{Code: alert.AppDown, AppID: fmt.Sprintf("APP%08d", i)})
	}
	await(t, 10*time.Second, "alerts that wait, and grow old", func() bool {
		n, _ := w.metric("yumen_outbox_pending_records", "class=alert")
		age, _ := w.metric("yumen_outbox_oldest_age_seconds", "class=alert")
		bytes, _ := w.metric("yumen_outbox_bytes", "class=alert")
		last, _ := w.metric("yumen_outbox_last_sequence", "class=alert")
		_, acked := w.metric("yumen_outbox_acked_sequence", "class=alert")
		_, full := w.metric("yumen_outbox_full")
		return n >= 3 && last >= 3 && age > 0 && bytes > 0 && acked && full
	})
}

// R6 of a whole gateway: its folder is on a tmpfs of 24 MiB in a mount namespace
// of its own, where the test binary runs itself, and the disk fills up.
func TestR6_GatewayOnAFullDisk(t *testing.T) {
	dir := os.Getenv("YUMEN_GATEWAY_TMPFS")
	if dir == "" {
		if os.Getuid() != 0 {
			t.Skip("SKIPPED, NOT PASSED: a full disk is made by mounting a tmpfs, which needs root")
		}
		at, err := os.MkdirTemp("", "full")
		must(t, err)
		defer os.Remove(at)
		cmd := exec.Command(os.Args[0], "-test.run=^TestR6_GatewayOnAFullDisk$", "-test.v", "-test.timeout=3m")
		cmd.Env = append(os.Environ(), "YUMEN_GATEWAY_TMPFS="+at)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatalf("in the mount namespace: %v", err)
		}
		return
	}
	must(t, syscall.Mount("gateway", dir, "tmpfs", 0, "size=24m"))
	t.Setenv("TMPDIR", dir)
	w := newWorld(t)
	c := w.center(twoApps + "outbox: {reserve_bytes: 2097152, segment_bytes: 65536}\n")
	c.set(wire.GrantsList, 1, w.list(w.control, gwID, wire.GrantsList, 1, user+" "+dev+" "+app1))
	c.set(wire.PoliciesList, 1, w.list(w.control, gwID, wire.PoliciesList, 1))
	w.start()
	await(t, 30*time.Second, "the lists", func() bool { return w.g.access.Stats().Rows == 1 })
	alice := w.client(w.alice())
	w.want(alice, "https://one.test/", 200, user)

	await(t, 30*time.Second, "the outbox is on disk", func() bool {
		s := w.g.link.OutboxStatus()
		return !s.Memory && s.Reserve
	})

	// 1 no space is left
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	must(t, err)
	for _, n := range []int{64 << 10, 1 << 10, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, n))
		}
	}
	must(t, f.Close())
	var st syscall.Statfs_t
	must(t, syscall.Statfs(dir, &st))
	if st.Bavail > 16 {
		t.Fatalf("%d blocks are free", st.Bavail)
	}

	// 2 it serves, says so, and its alerts arrive
	raise := func(word string, n int) time.Duration {
		t.Helper()
		began := time.Now()
		for i := range n {
			w.g.link.Raise(alert.Alert{Code: alert.AppDown, AppID: app1, Detail: fmt.Sprint(word, "-", i, "-")})
		}
		await(t, 60*time.Second, word, func() bool { return c.count("T11", word) == n })
		return time.Since(began)
	}
	took := raise("whilefull", 200)
	full := await(t, 10*time.Second, "the status says that the disk is full", func() bool {
		v, _ := w.metric("yumen_outbox_full")
		return v == 1 && w.g.Status().Control.OutboxFull
	})
	for range 20 {
		w.want(alice, "https://one.test/", 200, user)
	}
	await(t, 10*time.Second, "the alert that says so", func() bool { return c.count("T11", `"2.025"`) > 0 })
	refused := w.g.link.OutboxStatus()
	t.Logf("200 alerts arrived in %v with the disk full; said %v later; %+v", took, full, refused)

	// 3 space is back
	must(t, os.Remove(filler))
	back := await(t, 30*time.Second, "the outbox goes on", func() bool {
		v, ok := w.metric("yumen_outbox_full")
		return ok && v == 0 && !w.g.Status().Control.OutboxFull && w.g.link.OutboxStatus().Reserve
	})
	took = raise("afterwards", 50)
	w.want(alice, "https://one.test/", 200, user)
	t.Logf("space back: the outbox takes all again after %v, 50 alerts arrived in %v", back, took)
	await(t, 10*time.Second, "the alert that space is back", func() bool { return c.count("T11", `"2.026"`) > 0 })
	if back > 5*time.Second {
		t.Errorf("the outbox resumed %v after space was there, want at most 5s", back)
	}
	for _, k := range w.g.link.OutboxStatus().Classes {
		if k.Class == "alert" && k.Dropped != 0 {
			t.Errorf("alerts were dropped: %+v", k)
		}
	}
	must(t, w.stop())
}
