package h3

import (
	"context"
	"errors"
	"io"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"
)

// acceptOneWay takes the client's one-way streams: a few, by the listener's
// limit, which is never raised.
func (c *conn) acceptOneWay() {
	for {
		str, err := c.q.AcceptUniStream(context.Background())
		if err != nil {
			return // the connection has ended
		}
		c.s.live.Add(1) // this connection is counted still
		go func() {
			defer c.s.live.Done()
			c.oneWay(str)
		}()
	}
}

// oneWay reads one of them to its end. An error of it is the connection's.
func (c *conn) oneWay(str *quic.ReceiveStream) {
	r := newReader(str)
	defer r.free()
	t, err := quicvarint.Read(r.Reader)
	if err != nil {
		return // ended before it was something (RFC 9114 §6.2)
	}
	switch t {
	case streamControl, streamEncoder, streamDecoder:
		err = c.once(t)
		if err == nil {
			err = c.critical(t, &r)
		}
		var ce connError
		if !errors.As(err, &ce) { // the stream has ended, or its connection
			ce.code = errClosedCritical
		}
		select {
		case <-c.q.Context().Done():
			return
		default:
		}
		c.malformed(ce)
		c.fail(ce.code)
	case streamPush:
		c.malformed(connError{errStreamCreation})
		c.fail(errStreamCreation)
	default:
		str.CancelRead(quic.StreamErrorCode(errStreamCreation))
	}
}

// once wants one stream of each type.
func (c *conn) once(t uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen[t] {
		return connError{errStreamCreation}
	}
	c.seen[t] = true
	return nil
}

func (c *conn) critical(t uint64, r *reader) error {
	switch t {
	case streamEncoder:
		return readEncoder(r)
	case streamDecoder:
		return readDecoder(r)
	}
	return c.readControl(r)
}

// readControl reads the client's control stream.
func (c *conn) readControl(r *reader) error {
	t, n, err := r.header()
	if err != nil {
		return err
	}
	if t != frameSettings {
		return connError{errMissingSettings}
	}
	if err := readSettings(r, n); err != nil {
		return err
	}
	for frames := 0; ; frames++ {
		t, n, err := r.header()
		if err != nil {
			return err
		}
		r.unknown = max(0, frames-perRequest*c.requests())
		switch {
		case t == frameGoAway, t == frameMaxPushID, t == frameCancelPush:
			err = c.pushID(r, t, n)
		case t == frameData, t == frameHeaders, t == frameSettings, t == framePushPromise, forbiddenFrame(t):
			err = connError{errFrameUnexpected}
		default:
			err = r.skip(n)
		}
		if err != nil {
			return err
		}
	}
}

// requests returns how many there were.
func (c *conn) requests() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int(c.next / 4)
}

// pushID reads a frame that is one identifier. Nothing is ever pushed.
func (c *conn) pushID(r *reader, t, n uint64) error {
	id, err := quicvarint.Read(r.Reader)
	if err != nil || uint64(quicvarint.Len(id)) > n || n > 8 {
		return connError{errFrame}
	}
	if _, err := io.CopyN(io.Discard, r.Reader, int64(n)-int64(quicvarint.Len(id))); err != nil || n != uint64(quicvarint.Len(id)) {
		return connError{errFrame}
	}
	switch {
	case t == frameGoAway && id > c.away, t == frameMaxPushID && id < c.maxPush, t == frameCancelPush && id >= c.maxPush:
		return connError{errID}
	case t == frameGoAway:
		c.away = id
	case t == frameMaxPushID:
		c.maxPush = id
	}
	if r.unknown++; r.unknown > maxUnknown {
		return connError{errExcessiveLoad}
	}
	return nil
}

// readSettings reads the frame and forgets it: what the client can take of
// answers is not limited here, and nothing is in a table.
func readSettings(r *reader, n uint64) error {
	if n > maxSettingsFrame {
		return connError{errExcessiveLoad}
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.Reader, b); err != nil {
		return connError{errFrame}
	}
	seen := map[uint64]bool{}
	for len(b) > 0 {
		id, l, err := quicvarint.Parse(b)
		if err != nil {
			return connError{errFrame}
		}
		v, m, err := quicvarint.Parse(b[l:])
		if err != nil {
			return connError{errFrame}
		}
		b = b[l+m:]
		switch {
		case seen[id], id >= 0x2 && id <= 0x5, id == settingExtendedConnect && v > 1:
			return connError{errSettings}
		case len(seen) >= maxSettings:
			return connError{errExcessiveLoad}
		}
		seen[id] = true
	}
	return nil
}

// readEncoder takes nothing but the one instruction that a table without room
// permits: to have none (RFC 9204 §4.3.1).
func readEncoder(r *reader) error {
	for {
		b, err := r.ReadByte()
		if err != nil {
			return err
		}
		if b != 0x20 {
			return connError{errEncoderStream}
		}
		if r.unknown++; r.unknown > maxUnknown {
			return connError{errExcessiveLoad}
		}
	}
}

// readDecoder takes cancellations of streams alone: nothing of ours refers to a
// table (RFC 9204 §4.4).
func readDecoder(r *reader) error {
	for {
		b, err := r.ReadByte()
		if err != nil {
			return err
		}
		if b&0xc0 != 0x40 {
			return connError{errDecoderStream}
		}
		if b&0x3f != 0x3f {
			continue
		}
		for i := 0; ; i++ { // the rest of the integer (RFC 7541 §5.1)
			if b, err = r.ReadByte(); err != nil {
				return err
			}
			if i > 8 {
				return connError{errDecoderStream}
			}
			if b&0x80 == 0 {
				break
			}
		}
	}
}
