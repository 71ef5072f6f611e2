package ctlclient

import "syscall"

const errRefused = syscall.Errno(10061) // WSAECONNREFUSED
