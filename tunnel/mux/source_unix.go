//go:build unix

package mux

import (
	"os"
	"syscall"
)

const pollable = true

// try reads once from a socket that does not block. It reports false, without a
// chunk, when there is nothing yet.
func (s *source) try(fd uintptr) bool {
	s.c = getChunk(recordSize)
	room := s.c.buf[HeaderSize : HeaderSize+s.max]
	for {
		n, err := syscall.Read(int(fd), room)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			putChunk(s.c)
			s.c = nil
			return false
		case err != nil:
			s.n, s.err = 0, os.NewSyscallError("read", err)
		default:
			s.n = n
		}
		return true
	}
}
