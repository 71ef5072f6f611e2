//go:build unix

package main

import "syscall"

// detached gives a background agent a session of its own: the terminal's
// signals are not for it.
var detached = &syscall.SysProcAttr{Setsid: true}
