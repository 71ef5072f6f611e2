package prompt

import (
	"fmt"
	"os"

	"golang.org/x/sys/windows"
)

// terminal reads from the console's input and writes to its output.
type terminal struct {
	*os.File
	out *os.File
}

func openTerminal() (terminal, error) {
	in, err := os.OpenFile("CONIN$", os.O_RDWR, 0)
	if err != nil {
		return terminal{}, fmt.Errorf("%w: %w", ErrNoTerminal, err)
	}
	out, err := os.OpenFile("CONOUT$", os.O_RDWR, 0)
	if err != nil {
		in.Close()
		return terminal{}, fmt.Errorf("%w: %w", ErrNoTerminal, err)
	}
	return terminal{in, out}, nil
}

// Write writes to the console.
func (t terminal) Write(b []byte) (int, error) { return t.out.Write(b) }

// WriteString writes to the console.
func (t terminal) WriteString(s string) (int, error) { return t.out.WriteString(s) }

// Close closes both files.
func (t terminal) Close() error {
	t.out.Close()
	return t.File.Close()
}

// hide switches the echo off and returns how to switch it on again, which may
// be called several times.
func (t terminal) hide() (restore func(), err error) {
	h := windows.Handle(t.Fd())
	var old uint32
	if err := windows.GetConsoleMode(h, &old); err != nil {
		return nil, err
	}
	if err := windows.SetConsoleMode(h, old&^windows.ENABLE_ECHO_INPUT); err != nil {
		return nil, err
	}
	return func() { _ = windows.SetConsoleMode(h, old) }, nil // the console has gone: nothing to restore
}
