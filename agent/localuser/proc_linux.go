package localuser

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// procNet looks for the socket src, connected to dst, in /proc/net/PROTO and,
// because an IPv6 socket may speak IPv4, in /proc/net/PROTO6. With unconnected
// set a socket without a peer matches too.
func procNet(proto string, src, dst netip.AddrPort, unconnected bool) (socket, error) {
	var faults []error
	for _, name := range []string{"/proc/net/" + proto, "/proc/net/" + proto + "6"} {
		f, err := os.Open(name)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		s, err := scanProc(f, src, dst, unconnected)
		f.Close()
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, ErrNotFound) {
			faults = append(faults, err)
		}
	}
	if len(faults) > 0 {
		return socket{}, fmt.Errorf("read socket table: %w", errors.Join(faults...))
	}
	return socket{}, ErrNotFound
}

// scanProc reads a table: columns sl, local, remote, state, queues, timers,
// retransmissions, uid, timeout, inode.
func scanProc(r io.Reader, src, dst netip.AddrPort, unconnected bool) (socket, error) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 10 || f[0] == "sl" {
			continue
		}
		local, ok1 := procAddr(f[1])
		remote, ok2 := procAddr(f[2])
		if !ok1 || !ok2 {
			continue
		}
		connected := local == src && remote == dst
		open := unconnected && remote.Port() == 0 && local.Port() == src.Port() &&
			(local.Addr() == src.Addr() || local.Addr().IsUnspecified())
		if !connected && !open {
			continue
		}
		uid, e1 := strconv.ParseUint(f[7], 10, 32)
		inode, e2 := strconv.ParseUint(f[9], 10, 32)
		if err := errors.Join(e1, e2); err != nil {
			return socket{}, fmt.Errorf("read socket table: %w", err)
		}
		return socket{uid: uint32(uid), inode: uint32(inode)}, nil
	}
	if err := sc.Err(); err != nil {
		return socket{}, err
	}
	return socket{}, ErrNotFound
}

// procAddr reads ADDRESS:PORT in hexadecimal, the address as 32-bit words of
// the machine's byte order.
func procAddr(s string) (netip.AddrPort, bool) {
	host, portText, ok := strings.Cut(s, ":")
	port, err := strconv.ParseUint(portText, 16, 16)
	if !ok || err != nil || len(portText) != 4 {
		return netip.AddrPort{}, false
	}
	b, err := hex.DecodeString(host)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(port)), true
}
