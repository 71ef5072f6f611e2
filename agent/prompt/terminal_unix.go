//go:build linux || darwin

package prompt

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

type terminal struct{ *os.File }

func openTerminal() (terminal, error) {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return terminal{}, fmt.Errorf("%w: %w", ErrNoTerminal, err)
	}
	return terminal{f}, nil
}

// hide switches the echo off and returns how to switch it on again, which may
// be called several times.
func (t terminal) hide() (restore func(), err error) {
	raw, err := t.SyscallConn()
	if err != nil {
		return nil, err
	}
	var old *unix.Termios
	var got error
	if err := raw.Control(func(fd uintptr) {
		if old, got = unix.IoctlGetTermios(int(fd), getTermios); got == nil {
			quiet := *old
			quiet.Lflag &^= unix.ECHO
			quiet.Lflag |= unix.ICANON | unix.ISIG
			got = unix.IoctlSetTermios(int(fd), setTermios, &quiet)
		}
	}); err != nil {
		return nil, err
	}
	if got != nil {
		return nil, got
	}
	return func() {
		_ = raw.Control(func(fd uintptr) { _ = unix.IoctlSetTermios(int(fd), setTermios, old) }) // the terminal has gone: nothing to restore
	}, nil
}
