package privilege

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// denied are calls that a server has no use for and an intruder has.
var denied = []uint32{
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_KCMP, unix.SYS_PIDFD_GETFD,
	unix.SYS_KEXEC_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_REBOOT,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSMOUNT, unix.SYS_OPEN_TREE, unix.SYS_MOUNT_SETATTR,
	unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_QUOTACTL,
	unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	unix.SYS_CLOCK_SETTIME, unix.SYS_SETTIMEOFDAY, unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME,
}

// Where struct seccomp_data has its fields.
const (
	atNumber = 0
	atArch   = 4
)

var arches = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// x32 is the bit of the numbers of a second table of x86-64.
const x32 = 0x40000000

// program returns the filter: another architecture's calls and those of no get
// EPERM, everything else goes on.
func program(arch uint32, no []uint32) []unix.SockFilter {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	const load, equal, atLeast, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	n := len(no)
	p := []unix.SockFilter{
		stmt(load, atArch),
		{Code: equal, K: arch, Jf: uint8(n + 3)}, // to the refusal
		stmt(load, atNumber),
		{Code: atLeast, K: x32, Jt: uint8(n + 1)},
	}
	for i, nr := range no {
		p = append(p, unix.SockFilter{Code: equal, K: nr, Jt: uint8(n - i)})
	}
	return append(p, stmt(ret, unix.SECCOMP_RET_ALLOW), stmt(ret, unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)))
}

// filter puts the filter in force on all threads. no_new_privs must be set.
func filter(c Config) error {
	arch, ok := arches[runtime.GOARCH]
	if !ok {
		return nil
	}
	no := denied
	if !c.Exec {
		no = append(no[:len(no):len(no)], unix.SYS_EXECVE, unix.SYS_EXECVEAT)
	}
	if !c.BPF {
		no = append(no[:len(no):len(no)], unix.SYS_BPF)
	}
	f := program(arch, no)
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(f)
	switch {
	case errno == unix.ENOSYS || errno == unix.EINVAL:
		return nil // a kernel without it
	case errno != 0:
		return fmt.Errorf("filter system calls: %w", errors.Join(ErrUnsupported, errno))
	}
	return nil
}
