package prompt

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pty opens a terminal of its own: what a person types goes to master.
func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	m, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	n, err := unix.IoctlGetInt(int(m.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(m.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	s, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return m, s
}

func echoes(t *testing.T, s *os.File) bool {
	t.Helper()
	m, err := unix.IoctlGetTermios(int(s.Fd()), getTermios)
	if err != nil {
		t.Fatal(err)
	}
	return m.Lflag&unix.ECHO != 0
}

func TestHideSwitchesTheEchoOffAndOn(t *testing.T) {
	master, slave := pty(t)
	restore, err := terminal{slave}.hide()
	if err != nil {
		t.Fatal(err)
	}
	if echoes(t, slave) {
		t.Error("the echo is on while a secret is typed")
	}
	if _, err := master.WriteString("secret\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := readLine(slave); err != nil || line != "secret" {
		t.Errorf("got %q, %v", line, err)
	}
	restore()
	restore()
	if !echoes(t, slave) {
		t.Error("the echo stayed off")
	}
}

func TestSecretWithoutATerminal(t *testing.T) {
	if f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err == nil {
		f.Close() // a person runs this test: asking would block
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		<-ctx.Done()
		return
	}
	if _, err := Secret(t.Context(), "password: "); err == nil {
		t.Error("a secret without a terminal")
	}
}
