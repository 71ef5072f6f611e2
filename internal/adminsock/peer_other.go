//go:build !linux

package adminsock

import "net"

// peerUID is not known here.
func peerUID(net.Conn) string { return unknown }
