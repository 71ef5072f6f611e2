// Package localuser finds out which local user is at the other end of a
// loopback connection, so that a face on 127.0.0.1, which every user of the
// machine can reach, serves one of them only.
//
// Linux answers from the kernel's socket tables (sock_diag, else /proc/net).
// On other systems [Supported] is false and [Peer] returns [ErrUnsupported]:
// the caller must refuse, unless its operator chose to trust all local users.
//
// In a user namespace, users that the namespace does not map all look like the
// overflow uid (65534); [Self] therefore reports an error for a program that
// runs under it.
package localuser

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
)

// ErrUnsupported says that this system does not tell whose a connection is.
var ErrUnsupported = errors.New("this system does not tell which user owns a connection (set trust_local_users: true to serve every local user)")

// ErrNotFound says that no living socket is at the other end.
var ErrNotFound = errors.New("no open local socket at the other end")

const overflowUID = 65534

// Self returns the uid that runs this program.
func Self() (uint32, error) {
	uid := os.Getuid()
	if uid < 0 {
		return 0, ErrUnsupported
	}
	if uid == overflowUID {
		return 0, errors.New("find own user: it is the overflow user 65534, whom every unmapped user looks like (run as a user of its own)")
	}
	return uint32(uid), nil
}

// Peer returns the uid that owns the other end of c, an accepted loopback TCP
// connection.
func Peer(c net.Conn) (uint32, error) {
	local, err1 := addrPort(c.LocalAddr())
	remote, err2 := addrPort(c.RemoteAddr())
	if err := errors.Join(err1, err2); err != nil {
		return 0, err
	}
	if !local.Addr().IsLoopback() || !remote.Addr().IsLoopback() {
		return 0, fmt.Errorf("find user of %s: not a loopback connection", remote)
	}
	return tcpOwner(remote, local)
}

// UDPPeer returns the uid that owns the UDP socket remote, which sends to
// local, both loopback.
func UDPPeer(local, remote netip.AddrPort) (uint32, error) {
	return udpOwner(unmap(remote), unmap(local))
}

func addrPort(a net.Addr) (netip.AddrPort, error) {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("find user of %v: not a TCP address", a)
	}
	return unmap(t.AddrPort()), nil
}

func unmap(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
