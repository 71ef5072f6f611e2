package tlcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Conn is a connection of either side. Read and Write may be called by one
// goroutine each at the same time, and so may Close and the deadlines by any.
type Conn struct {
	conn   net.Conn
	client bool
	config *Config

	hsMu  sync.Mutex
	hsErr error // guarded by hsMu
	done  atomic.Bool
	state ConnectionState // written before done is set, then changed by Settle alone

	in      halfConn
	small   []byte      // read buffer of a connection with little traffic; this and what follows guarded by in.mu
	large   *[]byte     // from recordPool or batchPool, while records are large
	raw     []byte      // the one of the two in use
	r, w    int         // raw[r:w] is received and not yet opened
	last    int         // length of the newest record
	full    bool        // the last read filled the buffer
	input   []byte      // payload not yet read, a slice of raw
	hand    []byte      // handshake bytes not yet a whole message
	ignored int         // records in a row that carried nothing
	asked   int         // HelloRequests declined
	heard   bool        // a record has come in
	lull    *lull       // how it waits without a buffer; nil until Settle
	sleepy  atomic.Bool // it hears little: ciphers are kept for a record alone

	out      halfConn
	flight   []byte // handshake records to be sent together; guarded by out.mu
	goodbye  bool   // close_notify is sent; guarded by out.mu
	closed   atomic.Bool
	notified atomic.Bool // the peer sent close_notify
}

const (
	smallRead    = 2048            // bytes of the read buffer while records are small
	alertTimeout = 5 * time.Second // for a last alert to a peer that does not read
)

var errShutdown = errors.New("tlcp: write after CloseWrite")

// Handshake runs the handshake unless it was run. Read and Write do so
// themselves.
func (c *Conn) Handshake() error { return c.HandshakeContext(context.Background()) }

// HandshakeContext is [Conn.Handshake] that ctx can end; the connection is
// closed then. After the handshake ctx is without effect. Every error is final.
func (c *Conn) HandshakeContext(ctx context.Context) (err error) {
	if c.done.Load() {
		return nil
	}
	c.hsMu.Lock()
	defer c.hsMu.Unlock()
	if c.done.Load() || c.hsErr != nil {
		return c.hsErr
	}
	if ctx.Done() != nil {
		ended := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(ended)
			c.conn.Close()
		})
		defer func() {
			if stop() {
				return
			}
			<-ended
			if ctx.Err() != nil {
				err = ctx.Err()
				c.hsErr = err
				c.done.Store(false)
			}
		}()
	}
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	if c.client {
		err = c.clientHandshake()
	} else {
		err = c.serverHandshake()
	}
	if err != nil {
		c.hsErr = c.fail(err)
		return c.hsErr
	}
	c.flight = nil
	c.state.HandshakeComplete = true
	c.done.Store(true)
	return nil
}

// ConnectionState returns what the handshake agreed on; before its end the
// zero value.
func (c *Conn) ConnectionState() ConnectionState {
	if !c.done.Load() {
		return ConnectionState{}
	}
	return c.state
}

// CloseNotified reports whether the peer has said that it sends no more. A Read
// that ends with io.EOF while this is false may have been cut short.
func (c *Conn) CloseNotified() bool { return c.notified.Load() }

// Read reads application data. The end is io.EOF; see [Conn.CloseNotified].
func (c *Conn) Read(b []byte) (int, error) {
	if err := c.Handshake(); err != nil {
		if err == io.EOF { // not the end of a stream that was whole
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	if len(b) == 0 {
		return 0, nil
	}
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	for len(c.input) == 0 {
		typ, payload, err := c.nextRecord(b)
		if err != nil {
			return 0, err
		}
		switch typ {
		case recordApplicationData:
			if &payload[0] == &b[0] { // opened where it is to go
				return len(payload), c.farewell()
			}
			c.input = payload
		case recordHandshake:
			err = c.afterHandshake(payload)
		default:
			err = alertf(AlertUnexpectedMessage, "read: record of type %d after the handshake", typ)
		}
		if err != nil {
			return 0, c.fail(err)
		}
	}
	n := copy(b, c.input)
	c.input = c.input[n:]
	if len(c.input) == 0 {
		c.input = nil
		return n, c.farewell()
	}
	return n, nil
}

// farewell says with the last bytes that they are the last, when that is known.
func (c *Conn) farewell() error {
	if c.w-c.r >= recordHeader+2 && recordType(c.raw[c.r]) == recordAlert && c.w-c.r >= recordHeader+int(c.raw[c.r+3])<<8+int(c.raw[c.r+4]) {
		if _, _, err := c.oneRecord(nil); errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}

// afterHandshake takes handshake bytes on an established connection: a client
// declines to negotiate anew, anything else is a fault.
func (c *Conn) afterHandshake(payload []byte) error {
	const most = 4
	c.hand = append(c.hand, payload...)
	request := []byte{typeHelloRequest, 0, 0, 0}
	if !c.client || len(c.hand) > len(request) || !bytes.HasPrefix(request, c.hand) {
		return alertf(AlertUnexpectedMessage, "read: a handshake message on an established connection")
	}
	if len(c.hand) < len(request) {
		return nil
	}
	c.hand = nil
	if c.asked++; c.asked > most {
		return alertf(AlertUnexpectedMessage, "read: the server asks for renegotiation again and again")
	}
	return c.sendAlert(levelWarning, AlertNoRenegotiation)
}

// Write sends b in records of at most 16 KiB, of which a few go to the transport
// at a time. An error is final for this direction, a timeout too: part of a
// record may be sent, and what was sealed with it is lost.
func (c *Conn) Write(b []byte) (int, error) {
	if err := c.Handshake(); err != nil {
		return 0, err
	}
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	switch {
	case c.closed.Load():
		return 0, net.ErrClosed
	case c.out.err != nil:
		return 0, c.out.err
	case c.goodbye:
		return 0, errShutdown
	case len(b) == 0:
		return 0, nil
	}
	pool := &recordPool
	if len(b) > maxPlaintext {
		pool = &batchPool
	}
	buf := pool.Get().(*[]byte)
	defer pool.Put(buf)
	n := 0
	for len(b) > 0 {
		batch, err := (*buf)[:0], error(nil)
		m := 0 // bytes of b in the batch
		for range batchRecords {
			piece := b[m:min(len(b), m+maxPlaintext)]
			if batch, err = c.out.seal(batch, recordApplicationData, piece, c.config.rand()); err != nil {
				break
			}
			if m += len(piece); m == len(b) {
				break
			}
		}
		if err == nil {
			_, err = c.conn.Write(batch)
		}
		if err != nil {
			c.out.err = err
			return n, err
		}
		n += m
		b = b[m:]
	}
	if c.sleepy.Load() {
		c.out.prot.rest()
	}
	return n, nil
}

// CloseWrite says to the peer that no more is sent; reading goes on. The
// transport stays open.
func (c *Conn) CloseWrite() error {
	if !c.done.Load() {
		return errors.New("tlcp: CloseWrite before the handshake")
	}
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	return c.closeNotify()
}

// closeNotify sends the alert once. The caller holds out.mu.
func (c *Conn) closeNotify() error {
	if c.goodbye || c.out.err != nil {
		return nil
	}
	c.goodbye = true
	return c.alertLocked(levelWarning, AlertCloseNotify)
}

// Close closes the connection, with a close_notify unless a Write is under way,
// which Close interrupts.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	var notify error
	if c.done.Load() && c.out.mu.TryLock() {
		// A peer that does not read must not hold us up.
		_ = c.conn.SetWriteDeadline(time.Now().Add(alertTimeout)) // fails on a dead connection only
		if err := c.closeNotify(); err != nil {
			notify = fmt.Errorf("tlcp: send close_notify: %w", err)
		}
		c.out.mu.Unlock()
	}
	if err := c.conn.Close(); err != nil {
		return err
	}
	return notify
}

// NetConn returns the transport. Reading or writing it corrupts the connection.
func (c *Conn) NetConn() net.Conn { return c.conn }

// LocalAddr returns the transport's local address.
func (c *Conn) LocalAddr() net.Addr { return c.conn.LocalAddr() }

// RemoteAddr returns the transport's remote address.
func (c *Conn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }

// SetDeadline sets both deadlines of the transport.
func (c *Conn) SetDeadline(t time.Time) error { return c.conn.SetDeadline(t) }

// SetReadDeadline sets the deadline of Read; after a timeout reading may go on.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

// SetWriteDeadline sets the deadline of Write; a timeout is final.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

// fail ends the connection for err and returns it: the peer is told when it is
// ours to tell. The caller holds in.mu and not out.mu.
func (c *Conn) fail(err error) error {
	var a *AlertError
	if c.in.err == nil {
		if ne := net.Error(nil); !errors.As(err, &ne) || !ne.Timeout() {
			c.in.err = err
		}
	}
	if !errors.As(err, &a) || a.Remote {
		return err
	}
	// Nothing may be written any more, so the deadline is ours; it also ends a
	// Write that is stuck.
	_ = c.conn.SetWriteDeadline(time.Now().Add(alertTimeout))
	_ = c.sendAlert(levelFatal, a.Alert) // err says more than its failure would
	c.out.mu.Lock()
	if c.out.err == nil {
		c.out.err = err
	}
	c.out.mu.Unlock()
	return err
}

func (c *Conn) sendAlert(level byte, a Alert) error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	return c.alertLocked(level, a)
}

func (c *Conn) alertLocked(level byte, a Alert) error {
	if c.out.err != nil {
		return c.out.err
	}
	if err := c.queue(recordAlert, []byte{level, byte(a)}); err != nil {
		return err
	}
	return c.flushLocked()
}

// queue appends a record to the flight. The caller holds out.mu.
func (c *Conn) queue(typ recordType, payload []byte) (err error) {
	c.flight, err = c.out.seal(c.flight, typ, payload, c.config.rand())
	return err
}

func (c *Conn) flushLocked() error {
	if len(c.flight) == 0 {
		return nil
	}
	_, err := c.conn.Write(c.flight)
	c.flight = c.flight[:0]
	if err != nil {
		c.out.err = err
	}
	return err
}

// writeMessage queues a handshake message in a record of its own; only one
// that is longer than a record takes several.
func (c *Conn) writeMessage(msg []byte) error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	for len(msg) > 0 {
		n := min(len(msg), maxPlaintext)
		if err := c.queue(recordHandshake, msg[:n]); err != nil {
			return err
		}
		msg = msg[n:]
	}
	return nil
}

// writeChangeCipherSpec queues the record and takes our keys into use.
func (c *Conn) writeChangeCipherSpec() error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if err := c.queue(recordChangeCipherSpec, []byte{1}); err != nil {
		return err
	}
	return c.out.changeCipherSpec()
}

// flush sends what is queued.
func (c *Conn) flush() error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	return c.flushLocked()
}

// Server returns the server side over conn, which it owns.
func Server(conn net.Conn, config *Config) *Conn { return newConn(conn, config, false) }

// Client returns the client side over conn, which it owns.
func Client(conn net.Conn, config *Config) *Conn { return newConn(conn, config, true) }

func newConn(conn net.Conn, config *Config, client bool) *Conn {
	if config == nil {
		config = new(Config) // the handshake says what is missing
	}
	return &Conn{conn: conn, config: config, client: client}
}
