package probe

import (
	"encoding/binary"
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// Numbers of the generic netlink family netdev (linux/netdev.h, Linux 6.3).
const (
	netdevGet      = 1
	netdevIndex    = 1
	netdevFeatures = 3
	featureBasic   = 1 // drop, pass, aborted, transmit
	linkXDP        = 43
	linkXDPAttach  = 2
)

// nativeXDP asks the driver of an interface whether it runs XDP: "yes", "no", or
// "unknown" where the kernel cannot tell.
func nativeXDP(index int) string {
	family, ok := netdevFamily()
	if !ok {
		return "unknown"
	}
	answer, err := ask(unix.NETLINK_GENERIC, family, append([]byte{netdevGet, 1, 0, 0}, attribute(netdevIndex, binary.NativeEndian.AppendUint32(nil, uint32(index)))...))
	if err != nil || len(answer) < 4 {
		return "unknown"
	}
	found := "unknown"
	attributes(answer[4:], func(kind uint16, v []byte) {
		if kind == netdevFeatures && len(v) == 8 {
			found = "no"
			if binary.NativeEndian.Uint64(v)&featureBasic != 0 {
				found = "yes"
			}
		}
	})
	return found
}

// netdevFamily returns the number of the family.
func netdevFamily() (id uint16, ok bool) {
	answer, err := ask(unix.NETLINK_GENERIC, unix.GENL_ID_CTRL, append([]byte{unix.CTRL_CMD_GETFAMILY, 1, 0, 0}, attribute(unix.CTRL_ATTR_FAMILY_NAME, []byte("netdev\x00"))...))
	if err != nil || len(answer) < 4 {
		return 0, false
	}
	attributes(answer[4:], func(kind uint16, v []byte) {
		if kind == unix.CTRL_ATTR_FAMILY_ID && len(v) >= 2 {
			id, ok = binary.NativeEndian.Uint16(v), true
		}
	})
	return id, ok
}

// hasProgram reports whether an XDP program hangs on an interface.
func hasProgram(name string) bool {
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		return false
	}
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], uint32(ifc.Index))
	answer, err := ask(unix.NETLINK_ROUTE, unix.RTM_GETLINK, body)
	if err != nil || len(answer) < unix.SizeofIfInfomsg {
		return false
	}
	found := false
	attributes(answer[unix.SizeofIfInfomsg:], func(kind uint16, v []byte) {
		if kind == linkXDP {
			attributes(v, func(kind uint16, v []byte) { found = found || kind == linkXDPAttach && len(v) > 0 && v[0] != 0 })
		}
	})
	return found
}

func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, -len(value)&3)...)
}

func attributes(b []byte, f func(kind uint16, value []byte)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED, b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// ask sends one request of netlink and returns the body of its answer.
func ask(protocol int, kind uint16, body []byte) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = append(b, make([]byte, 8)...)
	if err := unix.Sendto(fd, append(b, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	answer := make([]byte, 64<<10)
	n, _, err := unix.Recvfrom(fd, answer, unix.MSG_DONTWAIT) // the kernel has answered already
	if err != nil {
		return nil, err
	}
	if n < unix.NLMSG_HDRLEN || int(binary.NativeEndian.Uint32(answer)) > n {
		return nil, errors.New("netlink: short answer")
	}
	if binary.NativeEndian.Uint16(answer[4:]) == unix.NLMSG_ERROR {
		return nil, errors.New("netlink: refused")
	}
	return answer[unix.NLMSG_HDRLEN:binary.NativeEndian.Uint32(answer)], nil
}
