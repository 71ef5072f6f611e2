//go:build !linux

package localuser

import "net/netip"

// Supported reports whether [Peer] can answer on this system.
const Supported = false

func tcpOwner(_, _ netip.AddrPort) (uint32, error) { return 0, ErrUnsupported }
func udpOwner(_, _ netip.AddrPort) (uint32, error) { return 0, ErrUnsupported }
