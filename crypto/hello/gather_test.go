package hello

import (
	"bytes"
	"errors"
	"net"
	"testing"
)

// counter is a connection that keeps what is written, and counts the writes.
type counter struct {
	net.Conn
	got    bytes.Buffer
	writes int
	err    error
}

func (c *counter) Write(b []byte) (int, error) {
	c.writes++
	if c.err != nil {
		return 0, c.err
	}
	return c.got.Write(b)
}

func TestGatherMakesOneWrite(t *testing.T) {
	below := &counter{}
	c := Replay(below, nil)
	part := bytes.Repeat([]byte("x"), 16<<10)
	write := func(n int) func() error {
		return func() error {
			for range n {
				if _, err := c.Write(part); err != nil {
					return err
				}
			}
			return nil
		}
	}
	for _, want := range []struct{ parts, writes int }{{1, 1}, {3, 1}, {4, 1}, {5, 2}, {9, 3}} {
		below.writes = 0
		below.got.Reset()
		if err := c.Gather(write(want.parts)); err != nil || below.writes != want.writes || below.got.Len() != want.parts*len(part) {
			t.Errorf("%d parts: %d writes, %d bytes, %v", want.parts, below.writes, below.got.Len(), err)
		}
	}
	below.writes = 0
	if err := write(3)(); err != nil || below.writes != 3 {
		t.Errorf("outside of Gather: %d writes, %v", below.writes, err)
	}
	below.err = errors.New("gone")
	if err := c.Gather(write(2)); err != below.err {
		t.Errorf("an error of the write: %v", err)
	}
}
