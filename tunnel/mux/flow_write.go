package mux

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/yumen-zt/yumen/internal/reason"
)

// reserve waits for credit and takes up to n of it: the rest of a window is not
// spent on a small record while a larger one is to come. The peer grants again
// when half of its window was read, which this never stands in the way of.
func (f *Flow) reserve(n int) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case f.wdeadline.expired:
			return 0, os.ErrDeadlineExceeded
		case f.err != nil:
			return 0, f.err
		case f.sentEnd || f.closed:
			return 0, net.ErrClosed
		case f.state == open && f.datagrams:
			return n, nil
		case f.state == open && f.sendCredit >= max(1, min(n, f.useful)):
			n = min(n, f.sendCredit)
			f.sendCredit -= n
			return n, nil
		}
		f.wcond.Wait()
	}
}

// refund gives back credit that was not used.
func (f *Flow) refund(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sendCredit += n
}

// addCredit takes the peer's WINDOW.
func (f *Flow) addCredit(n int) reason.Reason {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.err != nil:
		return reason.OK
	case f.state == opening, f.datagrams, n <= 0, f.sendCredit+n > maxCredit:
		return reason.FrameMalformed
	}
	f.sendCredit += n
	f.wcond.Signal()
	return reason.OK
}

// record writes c.buf[HeaderSize:HeaderSize+n] as one record; wmu is held.
func (f *Flow) record(c *chunk, n int) error {
	k := Data
	if f.datagrams {
		k = Datagram
	}
	putHeader(c.buf, Header{Kind: k, Length: n, Flow: f.id})
	f.pend.b = c.buf[:HeaderSize+n]
	var err error
	if !f.datagrams || !f.s.apart(f.pend.b) {
		err = f.s.write(&f.pend)
	}
	f.pend.b = nil
	if err == nil {
		f.out.Add(int64(n))
		f.s.sent.Add(uint64(n))
		return nil
	}
	return f.writeError(err)
}

// writeError says why a write failed, in the flow's terms.
func (f *Flow) writeError(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.err != nil:
		return f.err
	case f.wdeadline.expired:
		return os.ErrDeadlineExceeded
	case errors.Is(err, errClosed):
		return &ResetError{Reason: reason.TunnelClosed}
	}
	return err
}

// Write writes to the flow: bytes of the stream, or one datagram. It returns
// when the carrier has taken them, and waits for credit and turn.
func (f *Flow) Write(p []byte) (int, error) {
	f.wmu.Lock()
	defer f.wmu.Unlock()
	if f.datagrams && len(p) > MaxDatagram {
		return 0, fmt.Errorf("write datagram: %d bytes, at most %d", len(p), MaxDatagram)
	}
	total := 0
	for first := true; len(p) > 0 || first && f.datagrams; first = false {
		n, err := f.reserve(min(len(p), MaxPayload))
		if err != nil {
			return total, err
		}
		c := getChunk(HeaderSize + n)
		copy(c.buf[HeaderSize:], p[:n])
		err = f.record(c, n)
		putChunk(c)
		if err != nil {
			return total, err
		}
		total += n
		p = p[n:]
	}
	return total, nil
}

// ReadFrom moves what src gives to the peer until src's end, without a copy; on
// an association each read of src is one datagram. While src has nothing, no
// buffer is held if src is a socket. It returns nil after src's end.
func (f *Flow) ReadFrom(src io.Reader) (int64, error) {
	f.wmu.Lock()
	defer f.wmu.Unlock()
	f.feed(true)
	defer f.feed(false)
	r := newSource(src, f.datagrams)
	var total int64
	for {
		n, err := f.reserve(MaxPayload)
		if err != nil {
			return total, &flowError{err}
		}
		c, k, err := r.next(n)
		if !f.datagrams {
			f.refund(n - k)
		}
		if k > 0 || f.datagrams && err == nil {
			werr := f.record(c, k)
			total += int64(k)
			if werr != nil {
				err = &flowError{werr}
			}
		}
		if c != nil {
			putChunk(c)
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func (f *Flow) feed(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.feeding = on
}

// flowError marks an error of the flow itself, so that a relay can tell it from
// one of the source.
type flowError struct{ error }

// Unwrap returns the flow's error.
func (e *flowError) Unwrap() error { return e.error }
