//go:build !linux

package carrier

import "net"

// Tune does nothing on this system.
func Tune(net.Conn) {}
