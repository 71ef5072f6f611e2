//go:build linux || darwin

package localuser

import (
	"fmt"
	"net"
)

// UnixPeer returns the uid of the process that connected the unix socket c.
func UnixPeer(c net.Conn) (uint32, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("find user of %T: not a unix socket", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("find user of unix socket: %w", err)
	}
	var uid uint32
	var got error
	if err := raw.Control(func(fd uintptr) { uid, got = peerUID(int(fd)) }); err != nil {
		return 0, fmt.Errorf("find user of unix socket: %w", err)
	}
	if got != nil {
		return 0, fmt.Errorf("find user of unix socket: %w", got)
	}
	return uid, nil
}
