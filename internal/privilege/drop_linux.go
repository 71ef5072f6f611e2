package privilege

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Drop gives up everything that c does not keep.
func Drop(c Config) error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid core dumps and tracing: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	if err := prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	if c.Write != nil {
		if err := confine(c.Write); err != nil {
			return err
		}
	}
	if err := filter(c); err != nil {
		return err
	}
	if err := prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	var keep [2]uint32
	for _, n := range c.Keep {
		keep[n/32] |= 1 << (n % 32)
	}
	for n := range unix.CAP_LAST_CAP + 1 {
		if keep[n/32]&(1<<(n%32)) != 0 {
			continue
		}
		// Without CAP_SETPCAP the bound stays, which no_new_privs makes worthless.
		if err := prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("bound capabilities: %w", err)
		}
	}
	return capabilities(keep)
}

// prctl does it on every thread.
func prctl(option int, a, b uintptr) error {
	return all(unix.SYS_PRCTL, uintptr(option), a, b)
}

// all makes a call of the system on every thread.
func all(trap, a, b, c uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(trap, a, b, c, 0, 0, 0)
	if errno == syscall.ENOTSUP {
		return fmt.Errorf("%w: the binary was built with cgo (build it with CGO_ENABLED=0)", ErrUnsupported)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// capabilities leaves of this process's capabilities those of keep.
func capabilities(keep [2]uint32) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for i := range data {
		data[i].Permitted &= keep[i]
		data[i].Effective = data[i].Permitted
		data[i].Inheritable = 0
	}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&head)
	pin.Pin(&data)
	if err := all(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&data[0])), 0); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// WithoutCapabilities calls f with none in effect, on this thread alone. It
// tells what would fail after [Drop]; it must not run beside it.
func WithoutCapabilities(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	if err := unix.Capget(&head, &had[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	none := had
	none[0].Effective, none[1].Effective = 0, 0
	if err := unix.Capset(&head, &none[0]); err != nil {
		return fmt.Errorf("lower capabilities: %w", err)
	}
	err := f()
	if e := unix.Capset(&head, &had[0]); e != nil {
		return fmt.Errorf("raise capabilities again: %w", e) // those permitted are still
	}
	return err
}
