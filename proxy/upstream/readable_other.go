//go:build !linux

package upstream

import "net"

// readable can not be told here: a request that may be repeated is, on a fresh
// connection.
func readable(net.Conn) bool { return false }
