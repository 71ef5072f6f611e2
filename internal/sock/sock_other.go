//go:build !linux

package sock

import (
	"net"
	"syscall"
)

// Built reports whether Receive and Send work here.
const Built = false

// Receive is not built here.
func Receive(uintptr, []byte) (int, error) { return 0, syscall.ENOSYS }

// Silent is not built here.
func Silent(uintptr) bool { return false }

// Send is not built here.
func Send(uintptr, []byte) (int, error) { return 0, syscall.ENOSYS }

// Readable is not built here: what is wrong with a connection is found in using
// it.
func Readable(net.Conn) bool { return false }

// Ended is not built here.
func Ended(net.Conn) bool { return false }
