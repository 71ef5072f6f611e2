//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// place is two namespaces and a veth between them: inside has the guarded end
// g0, outside h0. Nothing of it has a name that others find.
type place struct{ inside, outside int }

func newPlace() (*place, error) {
	p := &place{}
	for _, fd := range []*int{&p.inside, &p.outside} {
		errs := make(chan error)
		go func() {
			runtime.LockOSThread() // never given back
			err := unix.Unshare(unix.CLONE_NEWNET)
			if err == nil {
				*fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			}
			errs <- err
		}()
		if err := <-errs; err != nil {
			return nil, fmt.Errorf("make a network namespace: %w (root is needed)", err)
		}
	}
	err := p.in(p.inside, func() error {
		if err := sh("ip link set lo up; ip link add g0 type veth peer name h0; ip addr add 10.77.0.1/24 dev g0"); err != nil {
			return err
		}
		cmd := exec.Command("ip", "link", "set", "h0", "netns", "/proc/self/fd/3")
		fd, err := unix.Dup(p.outside)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "netns")
		defer f.Close()
		cmd.ExtraFiles = []*os.File{f}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("move h0: %w: %s", err, out)
		}
		// Without NAPI on the far end a veth takes no XDP frames.
		if err := gro("g0"); err != nil {
			return err
		}
		return sh("ip link set g0 up")
	})
	if err != nil {
		return nil, err
	}
	return p, p.in(p.outside, func() error {
		return sh("ip link set lo up; ip addr add 10.77.0.2/24 dev h0; ip link set h0 up")
	})
}

// in runs f on a thread in a namespace, and waits. What f starts stays there.
func (p *place) in(fd int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never given back: it stands in the wrong namespace
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func sh(line string) error {
	if out, err := exec.Command("sh", "-ec", line).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// gro switches generic receive offload on.
func gro(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ cmd, on uint32 }{0x2c, 1} // ETHTOOL_SGRO
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		pad  [16]byte
	}
	copy(req.name[:], name)
	req.data = unsafe.Pointer(&value)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); e != 0 {
		return fmt.Errorf("switch GRO of %s on: %w", name, e)
	}
	return nil
}

// received returns the packets that came to g0; the caller is inside.
func received() (n uint64) {
	// Not of /sys, which shows another namespace.
	b, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "g0:"); ok {
			var bytes uint64
			_, _ = fmt.Sscan(rest, &bytes, &n)
		}
	}
	return n
}

// pin keeps the calling thread on core.
func pin(core int) error { return pinThread(0, core) }

// pinAll keeps every thread of this process, and those that they start, on one
// core.
func pinAll(core int) error {
	all, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, e := range all {
		id, err := strconv.Atoi(e.Name())
		if err == nil {
			err = pinThread(id, core)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

func pinThread(id, core int) error {
	var set unix.CPUSet
	set.Set(core)
	if err := unix.SchedSetaffinity(id, &set); err != nil {
		return fmt.Errorf("pin a thread to core %d: %w", core, err)
	}
	return nil
}

func index(name string) (int, error) {
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		return 0, err
	}
	return ifc.Index, nil
}
