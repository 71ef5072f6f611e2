// Package fault breaks what Yumen stands on while it works: the path to the
// control center, the control center itself, disks, backups, clocks. Its tests
// run the real parts over real sockets and print the figures that they measured.
package fault
