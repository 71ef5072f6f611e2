package localuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Supported reports whether [Peer] can answer on this system.
const Supported = true

const (
	sockDiagByFamily = 20 // linux/sock_diag.h: SOCK_DIAG_BY_FAMILY
	anyState         = 0xfff
	diagRequestLen   = 56 // struct inet_diag_req_v2
	diagAnswerLen    = 72 // struct inet_diag_msg
	netlinkHeaderLen = 16
)

// socket is what the kernel says of one socket.
type socket struct{ uid, inode uint32 }

// owner demands a socket that a process still holds, which has an inode: one
// that was closed with data under way lives on without, and some kernels then
// give its owner as 0. The kernel reads the owner before the inode, so that an
// inode vouches for the owner.
func (s socket) owner() (uint32, error) {
	if s.inode == 0 {
		return 0, ErrNotFound
	}
	return s.uid, nil
}

func tcpOwner(src, dst netip.AddrPort) (uint32, error) {
	s, err := diag(src, dst)
	if err != nil && !errors.Is(err, ErrNotFound) {
		s, err = procNet("tcp", src, dst, false) // no sock_diag in this kernel or sandbox
	}
	if err != nil {
		return 0, fmt.Errorf("find user of %s: %w", src, err)
	}
	uid, err := s.owner()
	if err != nil {
		return 0, fmt.Errorf("find user of %s: %w", src, err)
	}
	return uid, nil
}

// udpOwner reads /proc/net: a UDP socket need not be connected, so that the
// exact lookup of sock_diag does not apply.
func udpOwner(src, dst netip.AddrPort) (uint32, error) {
	s, err := procNet("udp", src, dst, true)
	if err == nil && s.inode == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("find user of %s: %w", src, err)
	}
	return s.uid, nil
}

// diag asks the kernel for the one TCP socket with these ends.
func diag(src, dst netip.AddrPort) (socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return socket{}, fmt.Errorf("open sock_diag: %w", err)
	}
	defer unix.Close(fd)
	// The kernel answers within the call to send; the time-out is for the case
	// that it does not.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return socket{}, fmt.Errorf("open sock_diag: %w", err)
	}
	if err := unix.Sendto(fd, diagRequest(src, dst), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return socket{}, fmt.Errorf("ask sock_diag: %w", err)
	}
	var buf [4096]byte
	n, from, err := unix.Recvfrom(fd, buf[:], 0)
	if err != nil {
		return socket{}, fmt.Errorf("read sock_diag: %w", err)
	}
	if nl, ok := from.(*unix.SockaddrNetlink); !ok || nl.Pid != 0 {
		return socket{}, errors.New("read sock_diag: the answer is not the kernel's")
	}
	return parseDiag(buf[:n], src, dst)
}

func diagRequest(src, dst netip.AddrPort) []byte {
	ne, be := binary.NativeEndian, binary.BigEndian
	b := make([]byte, netlinkHeaderLen+diagRequestLen)
	ne.PutUint32(b[0:], uint32(len(b)))
	ne.PutUint16(b[4:], sockDiagByFamily)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST)
	q := b[netlinkHeaderLen:]
	q[0], q[1] = family(src), unix.IPPROTO_TCP
	ne.PutUint32(q[4:], anyState)
	be.PutUint16(q[8:], src.Port())
	be.PutUint16(q[10:], dst.Port())
	copy(q[12:28], src.Addr().AsSlice())
	copy(q[28:44], dst.Addr().AsSlice())
	ne.PutUint32(q[48:], ^uint32(0)) // no cookie
	ne.PutUint32(q[52:], ^uint32(0))
	return b
}

func family(ap netip.AddrPort) byte {
	if ap.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// parseDiag reads one answer and checks that it is for the socket asked for.
func parseDiag(b []byte, src, dst netip.AddrPort) (socket, error) {
	ne, be := binary.NativeEndian, binary.BigEndian
	short := errors.New("read sock_diag: the answer is short")
	if len(b) < netlinkHeaderLen+4 {
		return socket{}, short
	}
	kind, p := ne.Uint16(b[4:]), b[netlinkHeaderLen:]
	if kind == unix.NLMSG_ERROR {
		if e := unix.Errno(-int32(ne.Uint32(p))); e != unix.ENOENT {
			return socket{}, fmt.Errorf("ask sock_diag: %w", e)
		}
		return socket{}, ErrNotFound
	}
	if kind != sockDiagByFamily || len(p) < diagAnswerLen {
		return socket{}, short
	}
	// A socket of family IPv6 may hold a mapped IPv4 connection; its answer has
	// 16 bytes of address then. The ports are the same in every form.
	if be.Uint16(p[4:]) != src.Port() || be.Uint16(p[6:]) != dst.Port() {
		return socket{}, errors.New("read sock_diag: the answer is for another socket")
	}
	return socket{uid: ne.Uint32(p[64:]), inode: ne.Uint32(p[68:])}, nil
}
