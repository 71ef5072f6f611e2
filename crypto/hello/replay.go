package hello

import "net"

// Replay returns conn with raw before what is still to be read from it. The
// result is for one reader at a time, as every connection; raw is its own from
// now on, and is let go as soon as it was read.
func Replay(conn net.Conn, raw []byte) *ReplayConn { return &ReplayConn{conn, raw} }

// ReplayConn gives the peeked bytes back to the handshake and then reads from
// the connection below.
type ReplayConn struct {
	net.Conn
	peeked []byte // nil once replayed
}

// Read reads the peeked bytes first.
func (c *ReplayConn) Read(b []byte) (int, error) {
	if len(c.peeked) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.peeked)
	if c.peeked = c.peeked[n:]; len(c.peeked) == 0 {
		c.peeked = nil // the hello's memory must not stay with an idle connection
	}
	return n, nil
}

// NetConn returns the connection below, as [crypto/tls.Conn.NetConn] does.
func (c *ReplayConn) NetConn() net.Conn { return c.Conn }
