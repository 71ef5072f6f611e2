//go:build !windows

package ctlclient

import "syscall"

const errRefused = syscall.ECONNREFUSED
