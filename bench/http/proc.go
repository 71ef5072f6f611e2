//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of CPU times in /proc: USER_HZ is 100 on every Linux.
const tick = 10 * time.Millisecond

// usage is what a gateway and its core have used so far.
type usage struct {
	cpu, user time.Duration // of the gateway's processes
	core      time.Duration // of everybody on the core
}

// usage reads the CPU time of p's processes and of its core.
func (p *peer) usage(core int) (u usage, err error) {
	pids, err := family(p.pid())
	if err != nil {
		return u, err
	}
	for _, pid := range pids {
		f, err := statFields(pid)
		if err != nil {
			return u, err
		}
		user, err1 := strconv.ParseInt(f[11], 10, 64)
		system, err2 := strconv.ParseInt(f[12], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return u, fmt.Errorf("read CPU time of %d: %w", pid, err)
		}
		u.user += time.Duration(user) * tick
		u.cpu += time.Duration(user+system) * tick
	}
	u.core, err = coreBusy(core)
	return u, err
}

// family returns pid and its children.
func family(pid int) ([]int, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, fmt.Errorf("list children of %d: %w", pid, err)
	}
	pids := []int{pid}
	for _, f := range strings.Fields(string(raw)) {
		child, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("list children of %d: %w", pid, err)
		}
		pids = append(pids, child)
	}
	return pids, nil
}

// statFields returns the fields of /proc/PID/stat from the state on: what is
// before it may hold spaces.
func statFields(pid int) ([]string, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, fmt.Errorf("read CPU time: %w", err)
	}
	f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(f) < 13 {
		return nil, fmt.Errorf("read CPU time of %d: %d fields", pid, len(f))
	}
	return f, nil
}

// coreBusy returns the time that a core has not been idle.
func coreBusy(core int) (time.Duration, error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if f[0] != "cpu"+strconv.Itoa(core) || len(f) < 9 {
			continue
		}
		var sum int64
		for i, v := range f[1:9] { // user nice system idle iowait irq softirq steal
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read /proc/stat: %w", err)
			}
			if i != 3 && i != 4 {
				sum += n
			}
		}
		return time.Duration(sum) * tick, nil
	}
	return 0, fmt.Errorf("read /proc/stat: no core %d", core)
}

// memory returns a field of /proc/PID/status, such as VmRSS or VmHWM, in KiB,
// added up over the gateway's processes.
func (p *peer) memory(field string) (kib int, err error) {
	pids, err := family(p.pid())
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, fmt.Errorf("read memory: %w", err)
		}
		n, err := statusField(string(raw), field)
		if err != nil {
			return 0, fmt.Errorf("read memory of %d: %w", pid, err)
		}
		kib += n
	}
	return kib, nil
}

func statusField(status, field string) (int, error) {
	for line := range strings.Lines(status) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")))
		}
	}
	return 0, fmt.Errorf("no field %s", field)
}

func loadAverage() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(raw)); err == nil && len(f) > 0 {
		return f[0]
	}
	return "unknown"
}
