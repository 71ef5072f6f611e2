package tlcp

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// wireRecord is a record on its way, seen by the relay.
type wireRecord struct {
	fromClient bool
	index      int // in its direction
	raw        []byte
}

func (r wireRecord) kind() recordType { return recordType(r.raw[0]) }

func (r wireRecord) body() []byte { return r.raw[recordHeader:] }

// record makes a record in the clear.
func record(typ recordType, body []byte) []byte {
	out := []byte{byte(typ), byte(Version >> 8), byte(Version & 0xff), 0, 0}
	binary.BigEndian.PutUint16(out[3:], uint16(len(body)))
	return append(out, body...)
}

// rewrite decides what is sent on in place of a record.
type rewrite func(wireRecord) [][]byte

func unchanged(r wireRecord) [][]byte { return [][]byte{r.raw} }

// result is how a relayed connection ended.
type result struct {
	server, client       *Conn
	serverErr, clientErr error
}

// refused reports whether the handshake succeeded on neither side, or a side
// that believed in it found out at the first record.
func (r result) refused() bool { return r.serverErr != nil && r.clientErr != nil }

// relayed runs a handshake, an exchange and a close through a relay that
// rewrites records, in a bubble where time costs nothing.
func relayed(t *testing.T, server, client *Config, f rewrite) (res result) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, relayS := net.Pipe()
		c, relayC := net.Pipe()
		var wg sync.WaitGroup
		var mu sync.Mutex // the directions call f in turns
		forward := func(dst, src net.Conn, fromClient bool) {
			defer dst.Close()
			var out [][]byte
			head := make([]byte, recordHeader)
			for i := 0; ; i++ {
				if _, err := io.ReadFull(src, head); err != nil {
					return
				}
				raw := make([]byte, recordHeader+int(binary.BigEndian.Uint16(head[3:])))
				copy(raw, head)
				if _, err := io.ReadFull(src, raw[recordHeader:]); err != nil {
					return
				}
				mu.Lock()
				out = f(wireRecord{fromClient, i, raw})
				mu.Unlock()
				for _, b := range out {
					if _, err := dst.Write(b); err != nil {
						go io.Copy(io.Discard, src) // it may still be writing
						return
					}
				}
			}
		}
		wg.Go(func() { forward(relayS, relayC, true) })
		wg.Go(func() { forward(relayC, relayS, false) })
		for _, conn := range []net.Conn{s, c} {
			if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
		}
		res.server, res.client = Server(s, server), Client(c, client)
		wg.Go(func() { res.serverErr = talk(res.server) })
		wg.Go(func() { res.clientErr = talk(res.client) })
		wg.Wait()
	})
	return res
}

// talk handshakes, sends a word, waits for the other's, and closes.
func talk(c *Conn) error {
	defer c.Close()
	if err := c.Handshake(); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write([]byte("hello"))
		sent <- err
	}()
	var b [5]byte
	_, err := io.ReadFull(c, b[:])
	if err != nil {
		c.NetConn().Close()
	}
	return errors.Join(err, <-sent)
}

// alertOf returns the alert that err says we sent, or received.
func alertOf(err error) (a Alert, remote, ok bool) {
	var e *AlertError
	if !errors.As(err, &e) {
		return 0, false, false
	}
	return e.Alert, e.Remote, true
}
