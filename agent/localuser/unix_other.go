//go:build !linux && !darwin

package localuser

import "net"

// UnixPeer is not known on this system.
func UnixPeer(net.Conn) (uint32, error) { return 0, ErrUnsupported }
