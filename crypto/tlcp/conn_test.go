package tlcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// plain returns an established connection over TCP with E053.
func plain(t *testing.T) (s, c *Conn) {
	t.Helper()
	server, client := newSite(t).configs(ECC_SM4_GCM_SM3, false)
	return mustHandshake(t, "tcp4", server, client)
}

func TestEndIsToldWithTheLastBytes(t *testing.T) {
	s, c := plain(t)
	// Both records in one segment, so that the alert is there already.
	c.out.mu.Lock()
	err := c.queue(recordApplicationData, []byte("last"))
	if err == nil {
		err = c.closeNotify()
	}
	c.out.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	if n, err := s.Read(b); string(b[:n]) != "last" || err != io.EOF {
		t.Errorf("got %q, %v", b[:n], err)
	}
	if n, err := s.Read(b); n != 0 || err != io.EOF {
		t.Errorf("again: %d, %v", n, err)
	}
}

func TestTruncationIsVisible(t *testing.T) {
	s, c := plain(t)
	if _, err := c.Write([]byte("all")); err != nil {
		t.Fatal(err)
	}
	c.NetConn().Close()
	if b, err := io.ReadAll(s); string(b) != "all" || err != nil || s.CloseNotified() {
		t.Errorf("between records: %q, %v, notified %v", b, err, s.CloseNotified())
	}
	s, c = plain(t)
	rec, err := c.out.seal(nil, recordApplicationData, []byte("cut"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.NetConn().Write(rec[:len(rec)-1]); err != nil {
		t.Fatal(err)
	}
	c.NetConn().Close()
	if b, err := io.ReadAll(s); len(b) != 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("inside a record: %q, %v", b, err)
	}
}

func TestSpoiledRecordEndsTheConnection(t *testing.T) {
	for _, suite := range []uint16{ECC_SM4_GCM_SM3, ECC_SM4_CBC_SM3} {
		server, client := newSite(t).configs(suite, false)
		s, c := mustHandshake(t, "tcp4", server, client)
		rec, err := c.out.seal(nil, recordApplicationData, []byte("hello"), testRand(t))
		if err != nil {
			t.Fatal(err)
		}
		rec[len(rec)-3] ^= 1
		if _, err := c.NetConn().Write(rec); err != nil {
			t.Fatal(err)
		}
		_, err = s.Read(make([]byte, 10))
		if a, remote, ok := alertOf(err); !ok || remote || a != AlertBadRecordMAC {
			t.Errorf("Read: %v", err)
		}
		if _, again := s.Read(make([]byte, 10)); again != err {
			t.Errorf("Read again: %v", again)
		}
		if _, err := s.Write([]byte("x")); err == nil {
			t.Error("Write went on")
		}
		_, err = c.Read(make([]byte, 10))
		if a, remote, ok := alertOf(err); !ok || !remote || a != AlertBadRecordMAC {
			t.Errorf("the sender: %v", err)
		}
	}
}

func TestReadGoesOnAfterATimeout(t *testing.T) {
	s, c := plain(t)
	rec, err := c.out.seal(nil, recordApplicationData, []byte("hello"), nil)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	for i := range rec {
		if err := s.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("after %d bytes: %v", i, err)
		}
		if _, err := c.NetConn().Write(rec[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Read(b); string(b[:n]) != "hello" || err != nil {
		t.Errorf("got %q, %v", b[:n], err)
	}
}

func TestWriteTimeoutIsFinal(t *testing.T) {
	_, c := plain(t)
	if err := c.SetWriteDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if err := c.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a later Write: %v", err)
	}
}

func TestCloseInterruptsWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		server, client := newSite(t).configs(ECC_SM4_GCM_SM3, false)
		s, c := Server(a, server), Client(b, client)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.Handshake(); err != nil {
				t.Error(err)
			}
		})
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		wg.Go(func() {
			if _, err := c.Write(make([]byte, 1<<20)); err == nil {
				t.Error("a megabyte was written to nobody")
			}
		})
		synctest.Wait() // the Write is stuck: nobody reads
		c.Close()
		wg.Wait()
		// The other side's Close must not wait for a peer that does not read.
		from := time.Now()
		s.Close()
		if d := time.Since(from); d > alertTimeout {
			t.Errorf("Close took %v", d)
		}
	})
}

func TestHandshakeContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		server, _ := newSite(t).configs(ECC_SM4_GCM_SM3, false)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s := Server(a, server)
		if err := s.HandshakeContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if err := s.Handshake(); err == nil {
			t.Error("a failed handshake was repeated")
		}
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("Read on a failed handshake")
		}
		if st := s.ConnectionState(); st.HandshakeComplete {
			t.Error("the state says complete")
		}
	})
}

func TestReadAndWriteHandshake(t *testing.T) {
	server, client := newSite(t).configs(ECC_SM4_GCM_SM3, false)
	a, b := socketPair(t, "tcp4")
	exchange(t, Server(a, server), Client(b, client), 200_000)
}

func TestHelloRequestIsDeclined(t *testing.T) {
	s, c := plain(t)
	ask := func(parts ...[]byte) {
		t.Helper()
		s.out.mu.Lock()
		defer s.out.mu.Unlock()
		for _, p := range parts {
			if err := s.queue(recordHandshake, p); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.flushLocked(); err != nil {
			t.Fatal(err)
		}
	}
	ask([]byte{0, 0, 0, 0})
	ask([]byte{0, 0}, []byte{0, 0}) // in pieces
	if _, err := s.Write([]byte("on")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "on" {
		t.Fatalf("the client: %q, %v", b, err)
	}
	for range 2 {
		typ, payload, err := readRaw(s)
		if err != nil || typ != recordAlert || !bytes.Equal(payload, []byte{levelWarning, byte(AlertNoRenegotiation)}) {
			t.Errorf("the server got type %d, % x, %v", typ, payload, err)
		}
	}
	for range 3 {
		ask([]byte{0, 0, 0, 0})
	}
	_, err := c.Read(b)
	if a, remote, ok := alertOf(err); !ok || remote || a != AlertUnexpectedMessage {
		t.Errorf("the client, asked again and again: %v", err)
	}
}

// readRaw reads one record past the handling of alerts.
func readRaw(c *Conn) (recordType, []byte, error) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return c.readRecord(nil)
}

func TestNoSecondHandshake(t *testing.T) {
	for _, kind := range []byte{typeClientHello, typeServerHello, typeFinished, typeNewSessionTicket, typeCertificate} {
		for _, toServer := range []bool{true, false} {
			s, c := plain(t)
			from, to := c, s
			if !toServer {
				from, to = s, c
			}
			from.out.mu.Lock()
			err := from.queue(recordHandshake, append([]byte{kind, 0, 0, 40}, make([]byte, 40)...))
			if err == nil {
				err = from.flushLocked()
			}
			from.out.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			_, err = to.Read(make([]byte, 1))
			if a, remote, ok := alertOf(err); !ok || remote || a != AlertUnexpectedMessage {
				t.Errorf("type %d to server %v: %v", kind, toServer, err)
			}
		}
	}
}

func TestEmptyRecordsEnd(t *testing.T) {
	s, c := plain(t)
	send := func(n int) {
		c.out.mu.Lock()
		defer c.out.mu.Unlock()
		for range n {
			if err := c.queue(recordApplicationData, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.flushLocked(); err != nil {
			t.Fatal(err)
		}
	}
	send(maxIgnored)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(make([]byte, 1)); err != nil {
		t.Fatalf("after %d empty records: %v", maxIgnored, err)
	}
	send(maxIgnored + 1)
	_, err := s.Read(make([]byte, 1))
	if a, _, ok := alertOf(err); !ok || a != AlertUnexpectedMessage {
		t.Errorf("after %d empty records: %v", maxIgnored+1, err)
	}
}

// TestOversizedPayload: a record may be within the limit of ciphertext and its
// payload beyond that of plaintext.
func TestOversizedPayload(t *testing.T) {
	for _, suite := range []uint16{ECC_SM4_GCM_SM3, ECC_SM4_CBC_SM3} {
		server, client := newSite(t).configs(suite, false)
		s, c := mustHandshake(t, "tcp4", server, client)
		rec, err := c.out.seal(nil, recordApplicationData, make([]byte, maxPlaintext+1), testRand(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.NetConn().Write(rec); err != nil {
			t.Fatal(err)
		}
		_, err = s.Read(make([]byte, 1))
		if a, _, ok := alertOf(err); !ok || a != AlertRecordOverflow {
			t.Errorf("%04x: %v", suite, err)
		}
	}
}

// TestIdleConnectionHoldsLittle: the large buffer goes back once records are
// small.
func TestIdleConnectionHoldsLittle(t *testing.T) {
	s, c := plain(t)
	exchange(t, s, c, 100)
	if s.large != nil || c.large != nil || len(s.raw) != smallRead {
		t.Errorf("after small records: large buffer %v, %d bytes", s.large != nil, len(s.raw))
	}
	exchange(t, s, c, 100_000)
	exchange(t, s, c, 10)
	exchange(t, s, c, 10)
	if s.large != nil || c.large != nil || len(s.raw) != smallRead {
		t.Errorf("after large and small records: large buffer %v, %d bytes", s.large != nil, len(s.raw))
	}
	if cap(s.flight) > 64 || cap(s.hand) > 0 {
		t.Errorf("the handshake left %d + %d bytes", cap(s.flight), cap(s.hand))
	}
}

// countedWrites counts what goes to the transport.
type countedWrites struct {
	net.Conn
	n int
}

func (c *countedWrites) Write(b []byte) (int, error) {
	c.n++
	return c.Conn.Write(b)
}

// TestLargeWritesAreJoined: up to four records go to the transport in one
// write, and what arrives is what was written.
func TestLargeWritesAreJoined(t *testing.T) {
	site := newSite(t)
	for _, suite := range []uint16{ECC_SM4_GCM_SM3, ECC_SM4_CBC_SM3} {
		s, c := mustHandshake(t, "tcp4", first(site.configs(suite, false)), second(site.configs(suite, false)))
		counted := &countedWrites{Conn: c.conn}
		c.conn = counted
		for _, size := range []int{1, maxPlaintext, maxPlaintext + 1, batchRecords * maxPlaintext, batchRecords*maxPlaintext + 1, 9*maxPlaintext + 7} {
			data := make([]byte, size)
			for i := range data {
				data[i] = byte(i*31 + i>>14)
			}
			counted.n = 0
			sent := make(chan error, 1)
			go func() {
				n, err := c.Write(data)
				if err == nil && n != size {
					err = fmt.Errorf("Write returned %d", n)
				}
				sent <- err
			}()
			got := make([]byte, size)
			_, err := io.ReadFull(s, got)
			if err = errors.Join(err, <-sent); err != nil {
				t.Fatalf("%s, %d bytes: %v", CipherSuiteName(suite), size, err)
			}
			if !bytes.Equal(got, data) {
				t.Errorf("%s, %d bytes: other bytes arrived", CipherSuiteName(suite), size)
			}
			if want := (size-1)/(batchRecords*maxPlaintext) + 1; counted.n != want {
				t.Errorf("%s, %d bytes: %d writes to the transport, want %d", CipherSuiteName(suite), size, counted.n, want)
			}
		}
	}
}
