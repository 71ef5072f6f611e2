package mux

import (
	"io"
	"syscall"
)

// source reads from a connection into pooled chunks, behind room for a record's
// head. For a socket, the chunk is taken only when there is something to read.
type source struct {
	r         io.Reader
	rc        syscall.RawConn // nil: r is no socket
	poll      func(fd uintptr) bool
	datagrams bool
	max       int
	large     bool // the last read filled a small chunk

	c   *chunk
	n   int
	err error
}

func newSource(r io.Reader, datagrams bool) *source {
	s := &source{r: r, datagrams: datagrams}
	if sc, ok := r.(syscall.Conn); ok && pollable {
		if rc, err := sc.SyscallConn(); err == nil {
			s.rc = rc
			s.poll = s.try
		}
	}
	return s
}

// next reads up to limit bytes. They stand behind HeaderSize in the chunk,
// which is the caller's; it may be nil when n is 0. The end is io.EOF.
func (s *source) next(limit int) (c *chunk, n int, err error) {
	s.max = limit
	if s.rc == nil {
		return s.block()
	}
	s.c, s.n, s.err = nil, 0, nil
	if err := s.rc.Read(s.poll); err != nil {
		return s.c, 0, err
	}
	if s.n == 0 && s.err == nil && !s.datagrams {
		s.err = io.EOF
	}
	return s.c, s.n, s.err
}

// block reads from what is no socket. A chunk is held while it waits: a small
// one, unless the last read asked for more.
func (s *source) block() (*chunk, int, error) {
	size := HeaderSize + s.max
	if !s.datagrams && !s.large {
		size = min(size, smallChunk)
	}
	c := getChunk(size)
	room := c.buf[HeaderSize:min(len(c.buf), HeaderSize+s.max)]
	n, err := s.r.Read(room)
	s.large = n == len(room) || s.large && n > smallChunk
	return c, n, err
}
