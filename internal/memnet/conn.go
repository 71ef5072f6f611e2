package memnet

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// maxInFlight bounds what one direction of a connection holds, in bytes.
const maxInFlight = 1 << 20

// Conn is one end of a connection. It is a [net.Conn].
type Conn struct {
	n             *Network
	local, remote Addr
	peer          *Conn
	in            *flow // what the peer has sent
	vanished      bool  // guarded by n.mu

	mu     sync.Mutex
	write  time.Time // guarded by mu; deadline
	closed bool      // guarded by mu
}

// flow is one direction: chunks with the times of their arrival.
type flow struct {
	mu     sync.Mutex
	queue  []chunk       // guarded by mu; in order of writing and of arrival
	bytes  int           // guarded by mu
	err    error         // guarded by mu; after the queue: io.EOF; at once: a reset or a close
	read   time.Time     // guarded by mu; deadline
	change chan struct{} // guarded by mu; closed and replaced at each change
}

type chunk struct {
	data []byte
	at   time.Time
	held bool // by a partition
	eof  bool
}

func newFlow() *flow { return &flow{change: make(chan struct{})} }

// changed wakes who waits. The caller holds mu.
func (f *flow) changed() {
	close(f.change)
	f.change = make(chan struct{})
}

// add puts a chunk behind the others.
func (f *flow) add(c chunk) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.queue); n > 0 && c.at.Before(f.queue[n-1].at) {
		c.at = f.queue[n-1].at
	}
	f.queue = append(f.queue, c)
	f.bytes += len(c.data)
	f.changed()
}

// release lets what a partition has held arrive.
func (f *flow) release(wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := time.Now().Add(wait)
	for i := range f.queue {
		c := &f.queue[i]
		if c.held || c.at.Before(at) && i > 0 && f.queue[i-1].at.Equal(at) {
			c.held, c.at = false, at
		}
	}
	f.changed()
}

// end makes reads fail at once.
func (f *flow) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	f.changed()
}

// Read implements [net.Conn].
func (c *Conn) Read(b []byte) (int, error) {
	f := c.in
	for {
		f.mu.Lock()
		if f.err != nil {
			err := f.err
			f.mu.Unlock()
			return 0, c.fault("read", err)
		}
		now := time.Now()
		if !f.read.IsZero() && !now.Before(f.read) {
			f.mu.Unlock()
			return 0, c.fault("read", os.ErrDeadlineExceeded)
		}
		next := f.read
		if len(f.queue) > 0 && !f.queue[0].held {
			head := &f.queue[0]
			if !now.Before(head.at) {
				if head.eof {
					f.mu.Unlock()
					return 0, io.EOF
				}
				n := copy(b, head.data)
				head.data = head.data[n:]
				f.bytes -= n
				if len(head.data) == 0 {
					f.queue = f.queue[1:]
				}
				f.changed()
				f.mu.Unlock()
				return n, nil
			}
			if next.IsZero() || head.at.Before(next) {
				next = head.at
			}
		}
		change := f.change
		f.mu.Unlock()
		await(change, next)
	}
}

// await waits for a change, or until at, if that is not zero.
func await(change <-chan struct{}, at time.Time) {
	if at.IsZero() {
		<-change
		return
	}
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-change:
	case <-t.C:
	}
}

// Write implements [net.Conn].
func (c *Conn) Write(b []byte) (int, error) {
	f := c.peer.in
	for {
		c.mu.Lock()
		closed, deadline := c.closed, c.write
		c.mu.Unlock()
		f.mu.Lock()
		full, change, err := f.bytes >= maxInFlight, f.change, f.err
		f.mu.Unlock()
		c.in.mu.Lock()
		if err == nil && c.in.err == errReset {
			err = errReset
		}
		c.in.mu.Unlock()
		switch {
		case closed:
			return 0, c.fault("write", net.ErrClosed)
		case err != nil:
			return 0, c.fault("write", errReset)
		case !deadline.IsZero() && !time.Now().Before(deadline):
			return 0, c.fault("write", os.ErrDeadlineExceeded)
		}
		if full {
			await(change, deadline)
			continue
		}
		in, never, held := c.send()
		if !never {
			f.add(chunk{data: append([]byte(nil), b...), at: time.Now().Add(in), held: held})
		}
		return len(b), nil
	}
}

// Close implements [net.Conn]. The peer reads what was written, then an end;
// of a connection that has vanished it learns nothing.
func (c *Conn) Close() error {
	c.mu.Lock()
	was := c.closed
	c.closed = true
	c.mu.Unlock()
	if was {
		return net.ErrClosed
	}
	c.in.end(net.ErrClosed)
	in, never, held := c.send()
	if !never {
		c.peer.in.add(chunk{at: time.Now().Add(in), held: held, eof: true})
	}
	c.n.mu.Lock()
	delete(c.n.conns, c)
	c.n.mu.Unlock()
	return nil
}

func (c *Conn) fault(op string, err error) error {
	return &net.OpError{Op: op, Net: c.local.Net, Source: c.local, Addr: c.remote, Err: err}
}

// LocalAddr and RemoteAddr implement [net.Conn].
func (c *Conn) LocalAddr() net.Addr  { return c.local }
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements [net.Conn].
func (c *Conn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements [net.Conn].
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.mu.Lock()
	c.in.read = t
	c.in.changed()
	c.in.mu.Unlock()
	return nil
}

// SetWriteDeadline implements [net.Conn].
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.write = t
	c.mu.Unlock()
	c.peer.in.mu.Lock()
	c.peer.in.changed()
	c.peer.in.mu.Unlock()
	return nil
}
