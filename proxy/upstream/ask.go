package upstream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/yumen-zt/yumen/internal/sock"
)

// errStale is a connection whose peer has sent something, or ended it, before
// it was asked: nothing was written.
var errStale = errors.New("the upstream spoke before it was asked")

// ask sends a head and waits for the first bytes of its answer on a plain
// socket in three system calls: a read that must find nothing, the write, and a
// read when the poller says so. Package net makes five of it, with a look at the
// socket before and a read that is too early after the write.
//
// Read and write are inside one RawConn.Read, so that an answer cannot come
// between its reset of the poller's state and the wait.
type ask struct {
	raw  syscall.RawConn              // nil: no plain socket
	step func(fd uintptr) (done bool) // run, made once

	out, in []byte
	n       int  // bytes read
	sent    bool // out is
	err     error
}

func (a *ask) init(c net.Conn) {
	t, ok := c.(*net.TCPConn)
	if !ok || !sock.Built {
		return
	}
	if raw, err := t.SyscallConn(); err == nil {
		a.raw, a.step = raw, a.run
	}
}

// do sends out and returns how many bytes of the answer it read into in.
func (a *ask) do(out, in []byte) (int, error) {
	a.out, a.in, a.n, a.sent, a.err = out, in, 0, false, nil
	err := a.raw.Read(a.step)
	if err == nil && a.err == nil && !a.sent { // it is longer than the socket has room for
		if err = a.raw.Write(a.rest); err == nil && a.err == nil {
			a.sent = true
			err = a.raw.Read(a.read)
		}
	}
	if err == nil {
		err = a.err
	}
	a.out, a.in = nil, nil
	switch {
	case err == nil, err == errStale:
		return a.n, err
	case !a.sent:
		return 0, fmt.Errorf("write request: %w", err)
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return 0, fmt.Errorf("read answer: %w", err)
}

func (a *ask) run(fd uintptr) (done bool) {
	if a.sent {
		return a.read(fd)
	}
	if a.read(fd) {
		a.err = errStale
		return true
	}
	a.rest(fd)
	a.sent = a.err == nil && len(a.out) == 0
	return !a.sent
}

// read reports whether something has come: bytes, the end or an error.
func (a *ask) read(fd uintptr) (done bool) {
	n, err := sock.Receive(fd, a.in)
	switch {
	case err == syscall.EAGAIN:
		return false
	case err != nil:
		a.err = os.NewSyscallError("recv", err)
	case n == 0:
		a.err = io.EOF
	}
	a.n = n
	return true
}

// rest writes what there is room for, and reports whether that was all.
func (a *ask) rest(fd uintptr) (done bool) {
	for len(a.out) > 0 {
		n, err := sock.Send(fd, a.out)
		if err == syscall.EAGAIN {
			return false
		}
		if err != nil {
			a.err = os.NewSyscallError("send", err)
			return true
		}
		a.out = a.out[n:]
	}
	return true
}
