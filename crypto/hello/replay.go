package hello

import (
	"net"
	"sync"

	"github.com/yumen-zt/yumen/internal/sock"
)

// Replay returns conn with raw before what is still to be read from it. The
// result is for one reader at a time, as every connection; raw is its own from
// now on, and is let go as soon as it was read.
func Replay(conn net.Conn, raw []byte) *ReplayConn { return &ReplayConn{Conn: conn, peeked: raw} }

// ReplayConn gives the peeked bytes back to the handshake and then reads from
// the connection below.
type ReplayConn struct {
	net.Conn
	peeked []byte // nil once replayed

	quiet   bool       // the reader's: reads find nothing
	records records    // the reader's
	wait    *sock.Wait // the reader's: made by Await

	mu       sync.Mutex
	gather   bool    // guarded by mu
	gathered *[]byte // guarded by mu; records that wait for the others of one write
}

// ErrQuiet is what Read returns while Quiet is on. TLS takes it for an error
// that passes, and stays as it is.
var ErrQuiet net.Error = quietError{}

type quietError struct{}

func (quietError) Error() string   { return "hello: nothing was asked of the socket" }
func (quietError) Timeout() bool   { return true }
func (quietError) Temporary() bool { return true }

// Quiet makes reads find nothing, or ends that: whoever reads above learns what
// the protocol in between has in its buffers. It belongs to the reader.
func (c *ReplayConn) Quiet(on bool) { c.quiet = on }

// Await blocks until a read from the socket would find something, and holds no
// more than a shallow stack meanwhile. It reports false when there is no socket
// to wait for. It belongs to the reader.
func (c *ReplayConn) Await() (waited bool, err error) {
	if c.wait == nil {
		w, t := new(sock.Wait), sock.TCP(c.Conn)
		if t == nil || !w.Init(t) {
			return false, nil
		}
		c.wait = w
	}
	return true, c.wait.Readable()
}

// gatherSize bounds what is gathered for one write.
const gatherSize = 64 << 10

var gathers = sync.Pool{New: func() any { b := make([]byte, 0, gatherSize+1024); return &b }}

// Gather makes one write of the writes in f: crypto/tls makes one of every
// record of 16 KiB, and each costs a system call. f must write to the connection
// above, from one goroutine.
func (c *ReplayConn) Gather(f func() error) error {
	c.mu.Lock()
	c.gather = true
	c.mu.Unlock()
	err := f()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gather = false
	if ferr := c.flush(); err == nil {
		err = ferr
	}
	return err
}

// Write writes b, or keeps it for the end of Gather.
func (c *ReplayConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	if !c.gather {
		c.mu.Unlock()
		return c.Conn.Write(b)
	}
	defer c.mu.Unlock()
	if c.gathered != nil && len(*c.gathered)+len(b) > gatherSize {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	if len(b) > gatherSize {
		return c.Conn.Write(b)
	}
	if c.gathered == nil {
		c.gathered = gathers.Get().(*[]byte)
	}
	*c.gathered = append(*c.gathered, b...)
	return len(b), nil
}

// flush writes what is gathered. mu is held.
func (c *ReplayConn) flush() error {
	if c.gathered == nil {
		return nil
	}
	_, err := c.Conn.Write(*c.gathered)
	*c.gathered = (*c.gathered)[:0]
	gathers.Put(c.gathered)
	c.gathered = nil
	return err
}

// Read reads the peeked bytes first.
func (c *ReplayConn) Read(b []byte) (int, error) {
	if c.quiet {
		return 0, ErrQuiet
	}
	if len(c.peeked) == 0 {
		n, err := c.Conn.Read(b)
		c.records.follow(b[:n])
		return n, err
	}
	n := copy(b, c.peeked)
	c.records.follow(b[:n])
	if c.peeked = c.peeked[n:]; len(c.peeked) == 0 {
		c.peeked = nil // the hello's memory must not stay with an idle connection
	}
	return n, nil
}

// NetConn returns the connection below, as [crypto/tls.Conn.NetConn] does.
func (c *ReplayConn) NetConn() net.Conn { return c.Conn }
