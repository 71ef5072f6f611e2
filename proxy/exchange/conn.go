package exchange

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/crypto/hello"
	"github.com/yumen-zt/yumen/internal/sock"
)

// Conn is one client connection after its handshake, as a listener hands it
// over. Its fields are read only.
type Conn struct {
	net.Conn                 // what is read and written is in the clear
	Protocol policy.Protocol // what the handshake agreed upon

	marked bool  // the reader's: TLS had nothing in its buffers, and since then
	reads  uint8 // was read so often, up to 2,
	got    int32 // and that was what the first read gave

	Suite  string            // cipher suite
	SNI    string            // server name that the client sent; empty: none
	ALPN   string            // "h2", "http/1.1" or empty
	Peer   *x509.Certificate // the leaf that proved its key, verified; nil: none
	Remote netip.AddrPort    // the client; behind a trusted forwarder, the one that it names

	texts     atomic.Pointer[texts]
	authority atomic.Pointer[Authority]
}

// texts are the client's address as text, which every request needs.
type texts struct{ remote, address string }

func (c *Conn) text() *texts {
	t := c.texts.Load()
	if t == nil {
		t = &texts{c.Remote.String(), c.Remote.Addr().Unmap().String()}
		if strings.HasPrefix(t.remote, t.address) {
			t.address = t.remote[:len(t.address)] // one string less for an idle connection to hold
		}
		c.texts.Store(t)
	}
	return t
}

// RemoteText returns Remote as text.
func (c *Conn) RemoteText() string { return c.text().remote }

// AddressText returns the client's address as text, without its port.
func (c *Conn) AddressText() string { return c.text().address }

// Authority is the reading of a Host field or an :authority that was good on a
// connection. The next request mostly has the same.
type Authority struct{ Sent, Host, Port string }

// Authority returns what was put last, or nil.
func (c *Conn) Authority() *Authority { return c.authority.Load() }

// SetAuthority keeps a.
func (c *Conn) SetAuthority(a *Authority) { c.authority.Store(a) }

// Raw returns the connection at the bottom, below TLS and wrappers.
func (c *Conn) Raw() net.Conn { return sock.Bottom(c.Conn) }

// quieter is the connection below TLS, as the listener makes it: it waits for its
// socket without TLS above it.
type quieter interface {
	Quiet(bool)
	Await() (waited bool, err error)
	Mark() bool
	OneRecord() int
}

// Read reads what the client has sent, in the clear. It is for one goroutine.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.reads = min(c.reads+1, 2); c.reads == 1 {
		c.got = int32(n)
	}
	return n, err
}

// sealing is what TLS 1.3 adds to what a record holds: its type and the tag.
const sealing = 1 + 16

// drained reports whether TLS has surely nothing in its buffers: there was nothing,
// then one record came, and what it holds was read whole.
func (c *Conn) drained(q quieter) bool {
	return c.marked && c.Protocol == policy.TLS13 && c.reads == 1 && c.got > 0 && q.OneRecord() == int(c.got)+sealing
}

// Await blocks until p gets some bytes or, with 0 and no error, until a read
// would find something. An idle connection waits in it, so that it holds no
// buffer and a shallow stack.
func (c *Conn) Await(p []byte) (int, error) {
	t, ok := c.Conn.(*tls.Conn)
	if !ok {
		return c.Conn.Read(p)
	}
	q, ok := t.NetConn().(quieter)
	if !ok {
		return c.Conn.Read(p)
	}
	if !c.drained(q) {
		q.Quiet(true)
		n, err := t.Read(p) // what TLS has in its buffers
		q.Quiet(false)
		if n > 0 || !errors.Is(err, hello.ErrQuiet) {
			c.marked = false
			return n, err
		}
	}
	c.marked, c.reads = q.Mark(), 0
	if waited, err := q.Await(); waited {
		return 0, err
	}
	return c.Conn.Read(p)
}

// recordSize is what TLS sends at once.
const recordSize = 16 << 10

// WriteAll writes p, in one write to the socket if it takes several records.
func (c *Conn) WriteAll(p []byte) error {
	if len(p) > recordSize {
		if t, ok := c.Conn.(*tls.Conn); ok { // TLCP does so itself
			if g, ok := t.NetConn().(gatherer); ok {
				return g.Gather(func() error {
					_, err := t.Write(p)
					return err
				})
			}
		}
	}
	_, err := c.Conn.Write(p)
	return err
}

// gatherer is the connection below TLS, as the listener makes it.
type gatherer interface{ Gather(func() error) error }

// Reset ends the connection at once: what the kernel has not sent is thrown
// away, and the client sees a reset. It does not block, and may be called from
// any goroutine and more than once.
func (c *Conn) Reset() {
	raw := c.Raw()
	if l, ok := raw.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = raw.Close()
}
