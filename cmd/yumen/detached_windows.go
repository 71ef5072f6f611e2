package main

import "syscall"

// detached gives a background agent a process group without a console.
var detached = &syscall.SysProcAttr{HideWindow: true, CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
