package tlcp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
)

// This file is the way of received bytes: transport → record → handshake
// message. All of it is for the holder of in.mu.

// fill waits until n bytes stand in raw[r:w]. n is at most a record.
func (c *Conn) fill(n int) error {
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
	if len(c.raw)-c.r < n {
		switch {
		case len(c.raw) < n:
			c.grow(n)
		case c.full && c.lull != nil && c.large != nil && len(c.raw) < batchSize:
			c.take(batchPool.Get().(*[]byte))
		}
		c.w = copy(c.raw, c.raw[c.r:c.w])
		c.r = 0
	}
	for c.w-c.r < n {
		m, err := c.conn.Read(c.raw[c.w:])
		c.w += m
		c.full = c.w == len(c.raw)
		if err != nil && c.w-c.r < n {
			if errors.Is(err, io.EOF) && c.w > c.r {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// grow takes a larger buffer.
func (c *Conn) grow(n int) {
	if n > smallRead {
		c.take(recordPool.Get().(*[]byte))
		return
	}
	old := c.raw[c.r:c.w]
	if c.small == nil {
		c.small = make([]byte, smallRead)
	}
	c.raw = c.small
	c.w = copy(c.raw, old)
	c.r = 0
}

// take goes over to a larger pooled buffer.
func (c *Conn) take(b *[]byte) {
	c.w = copy(*b, c.raw[c.r:c.w])
	c.r = 0
	c.giveBack()
	c.large, c.raw = b, *b
}

// giveBack gives the pooled buffer back, if there is one.
func (c *Conn) giveBack() {
	switch {
	case c.large == nil:
		return
	case len(*c.large) == batchSize:
		batchPool.Put(c.large)
	default:
		recordPool.Put(c.large)
	}
	c.large, c.raw = nil, c.small
}

// shrink gives the large buffer back once records are small again.
func (c *Conn) shrink() {
	if c.large != nil && c.r == c.w && c.last < smallRead/2 {
		c.giveBack()
		c.r, c.w = 0, 0
	}
}

// readRecord returns the next record of any type. payload is valid until the
// next call; that of application data may stand in into.
func (c *Conn) readRecord(into []byte) (typ recordType, payload []byte, err error) {
	c.shrink()
	if err := c.wait(); err != nil {
		return 0, nil, err
	}
	if err := c.fill(recordHeader); err != nil {
		return 0, nil, err
	}
	head := c.raw[c.r:]
	typ = recordType(head[0])
	version := binary.BigEndian.Uint16(head[1:])
	n := int(binary.BigEndian.Uint16(head[3:]))
	switch {
	case typ < recordChangeCipherSpec || typ > recordApplicationData:
		return 0, nil, alertf(AlertUnexpectedMessage, "read record: type %d is none of TLCP", typ)
	case version != Version:
		return 0, nil, alertf(AlertProtocolVersion, "read record: version 0x%04x, not 0x%04x", version, Version)
	case n > maxCiphertext || c.in.prot == nil && n > maxPlaintext:
		return 0, nil, alertf(AlertRecordOverflow, "read record: %d bytes", n)
	}
	c.heard = true
	if err := c.fill(recordHeader + n); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	body := c.raw[c.r+recordHeader : c.r+recordHeader+n]
	c.r += recordHeader + n
	c.last = n
	if typ != recordApplicationData {
		into = nil
	}
	if payload, err = c.in.open(typ, body, into); err != nil {
		return 0, nil, err
	}
	if len(payload) > maxPlaintext {
		return 0, nil, alertf(AlertRecordOverflow, "read record: payload of %d bytes", len(payload))
	}
	return typ, payload, nil
}

// oneRecord reads one record and deals with alerts and empty ones, for which
// the type returned is 0. Its errors are final but for timeouts.
func (c *Conn) oneRecord(into []byte) (recordType, []byte, error) {
	if c.in.err != nil {
		return 0, nil, c.in.err
	}
	typ, payload, err := c.readRecord(into)
	if err != nil {
		return 0, nil, c.fail(err)
	}
	switch {
	case typ == recordAlert:
		err = c.takeAlert(payload)
	case len(payload) > 0:
		c.ignored = 0
		return typ, payload, nil
	case typ != recordApplicationData || !c.done.Load():
		err = alertf(AlertUnexpectedMessage, "read record: type %d without content", typ)
	}
	if err == nil {
		if c.ignored++; c.ignored > maxIgnored {
			err = alertf(AlertUnexpectedMessage, "read record: %d records in a row without content", c.ignored)
		}
	}
	if err != nil {
		err = c.fail(err)
	}
	return 0, nil, err
}

func (c *Conn) takeAlert(payload []byte) error {
	if len(payload) != 2 {
		return alertf(AlertDecodeError, "read alert: %d bytes", len(payload))
	}
	level, a := payload[0], Alert(payload[1])
	switch {
	case a == AlertCloseNotify:
		c.notified.Store(true)
		return io.EOF
	case level == levelFatal:
		return &AlertError{Alert: a, Remote: true}
	case level == levelWarning:
		return nil
	}
	return alertf(AlertIllegalParameter, "read alert: level %d", level)
}

// nextRecord returns the next record that carries something; see readRecord.
func (c *Conn) nextRecord(into []byte) (recordType, []byte, error) {
	for {
		typ, payload, err := c.oneRecord(into)
		if err != nil || typ != 0 {
			return typ, payload, err
		}
	}
}

// readMessage returns the next handshake message, header included, in memory of
// its own. It may come in any number of records.
func (c *Conn) readMessage() (kind uint8, msg []byte, err error) {
	need := 4
	for len(c.hand) < need || need == 4 {
		if len(c.hand) >= 4 {
			n := int(c.hand[1])<<16 | int(c.hand[2])<<8 | int(c.hand[3])
			if n > maxHandshake && (c.hand[0] != typeCertificate || n > maxCertificateMsg) {
				return 0, nil, alertf(AlertIllegalParameter, "read handshake message: type %d with %d bytes", c.hand[0], n)
			}
			if need = 4 + n; len(c.hand) >= need {
				break
			}
		}
		typ, payload, err := c.nextRecord(nil)
		if err != nil {
			return 0, nil, c.ended(err)
		}
		if typ != recordHandshake {
			return 0, nil, alertf(AlertUnexpectedMessage, "read handshake message: got a record of type %d", typ)
		}
		c.hand = append(c.hand, payload...)
	}
	msg = bytes.Clone(c.hand[:need])
	if c.hand = c.hand[need:]; len(c.hand) == 0 {
		c.hand = nil
	}
	return msg[0], msg, nil
}

// ended tells a peer that went away in the middle of a handshake from one that
// never said anything.
func (c *Conn) ended(err error) error {
	if errors.Is(err, io.EOF) && c.heard {
		return io.ErrUnexpectedEOF
	}
	return err
}

// expect reads a handshake message that must be of this kind.
func (c *Conn) expect(kind uint8) (msg []byte, err error) {
	got, msg, err := c.readMessage()
	if err != nil {
		return nil, err
	}
	if got != kind {
		return nil, unexpected(got, kind)
	}
	return msg, nil
}

func unexpected(got, want uint8) error {
	return alertf(AlertUnexpectedMessage, "read handshake message: got type %d, want %d", got, want)
}

// readChangeCipherSpec takes the peer's keys into use. No handshake message may
// straddle it.
func (c *Conn) readChangeCipherSpec() error {
	if len(c.hand) > 0 {
		return alertf(AlertUnexpectedMessage, "read change cipher spec: got more handshake bytes")
	}
	typ, payload, err := c.nextRecord(nil)
	if err != nil {
		return c.ended(err)
	}
	if typ != recordChangeCipherSpec {
		return alertf(AlertUnexpectedMessage, "read change cipher spec: got a record of type %d", typ)
	}
	if len(payload) != 1 || payload[0] != 1 {
		return alertf(AlertDecodeError, "read change cipher spec: malformed")
	}
	return c.in.changeCipherSpec()
}

var _ net.Conn = (*Conn)(nil)
