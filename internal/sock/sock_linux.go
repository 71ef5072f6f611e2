package sock

import (
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Built reports whether Receive and Send work here.
const Built = true

// Receive reads what is there. EAGAIN: nothing is; 0 bytes: the end.
func Receive(fd uintptr, p []byte) (int, error) {
	if raced {
		n, err := syscall.Read(int(fd), p)
		return max(n, 0), err
	}
	for {
		n, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			syscall.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			return int(n), nil
		case syscall.EINTR:
		case syscall.EAGAIN: // without memory for the interface
			return 0, errAgain
		default:
			return 0, e
		}
	}
}

// Silent reports whether a read would find nothing: no byte, no end, no error.
func Silent(fd uintptr) bool {
	var b [1]byte
	for {
		_, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b)), 1, syscall.MSG_DONTWAIT|syscall.MSG_PEEK, 0, 0)
		if e != syscall.EINTR {
			return e == syscall.EAGAIN
		}
	}
}

// Send writes what there is room for, at once. EAGAIN: there is none.
func Send(fd uintptr, p []byte) (int, error) {
	if raced {
		n, err := syscall.Write(int(fd), p)
		return max(n, 0), err
	}
	for {
		n, _, e := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
		switch e {
		case 0:
			return int(n), nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, errAgain
		default:
			return 0, e
		}
	}
}

var errAgain error = syscall.EAGAIN

// Readable reports whether the peer of a connection has sent something that was
// not read, or has ended it; false when there is no socket below.
func Readable(c net.Conn) bool { return poll(c, unix.POLLIN|unix.POLLRDHUP) }

// Ended reports whether the peer of a connection has ended it, or its half of
// it; false when there is no socket below.
func Ended(c net.Conn) bool { return poll(c, unix.POLLRDHUP) }

// poll looks for events; errors are one.
func poll(c net.Conn, events int16) bool {
	t := TCP(c)
	if t == nil {
		return false
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return true
	}
	there := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(p, 0)
		there = err != nil || n > 0
	})
	return there || err != nil
}
