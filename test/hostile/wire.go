package hostile

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Version is TLCP's, in hellos and in every record.
const Version = 0x0101

// Suites are the four that are based on SM2 certificates (§6.4.5.2.1).
const (
	ECDHECBC uint16 = 0xE011
	ECCCBC   uint16 = 0xE013
	ECDHEGCM uint16 = 0xE051
	ECCGCM   uint16 = 0xE053
)

// Record types (§6.3.3).
const (
	TypeCCS       byte = 20
	TypeAlert     byte = 21
	TypeHandshake byte = 22
	TypeData      byte = 23
)

// Handshake types (§6.4.5); 4 is the session ticket of RFC 5077.
const (
	MsgHelloRequest       byte = 0
	MsgClientHello        byte = 1
	MsgServerHello        byte = 2
	MsgTicket             byte = 4
	MsgCertificate        byte = 11
	MsgServerKeyExchange  byte = 12
	MsgCertificateRequest byte = 13
	MsgServerHelloDone    byte = 14
	MsgCertificateVerify  byte = 15
	MsgClientKeyExchange  byte = 16
	MsgFinished           byte = 20
)

var errShort = errors.New("the message ends early")

// vec puts a length of n bytes before b.
func vec(n int, b []byte) []byte {
	out := make([]byte, n, n+len(b))
	for i := range n {
		out[i] = byte(len(b) >> (8 * (n - 1 - i)))
	}
	return append(out, b...)
}

func u16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func cat(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// Message puts the handshake header before body.
func Message(kind byte, body []byte) []byte { return append([]byte{kind}, vec(3, body)...) }

// Extension is one extension of a hello.
type Extension struct {
	ID   uint16
	Data []byte
}

// SNI, ALPN and the others build the extensions that peers are known to send.
func SNI(name string) Extension {
	return Extension{0, vec(2, cat([]byte{0}, vec(2, []byte(name))))}
}

func ALPN(protos ...string) Extension {
	var list []byte
	for _, p := range protos {
		list = append(list, vec(1, []byte(p))...)
	}
	return Extension{16, vec(2, list)}
}

func Groups(ids ...uint16) Extension {
	var list []byte
	for _, id := range ids {
		list = append(list, u16(id)...)
	}
	return Extension{10, vec(2, list)}
}

func SignatureAlgorithms(ids ...uint16) Extension {
	e := Groups(ids...)
	return Extension{13, e.Data}
}

func Ticket(t []byte) Extension { return Extension{35, t} }

// Hello is a ClientHello or ServerHello.
type Hello struct {
	Version      uint16
	Random       []byte
	SessionID    []byte
	Suites       []uint16 // one in a ServerHello
	Compressions []byte   // one in a ServerHello
	Extensions   []Extension
	// EmptyExtensions sends a block of length 0 instead of none.
	EmptyExtensions bool
}

func (h *Hello) extensions() []byte {
	var list []byte
	for _, e := range h.Extensions {
		list = append(list, cat(u16(e.ID), vec(2, e.Data))...)
	}
	if len(list) == 0 && !h.EmptyExtensions {
		return nil
	}
	return vec(2, list)
}

// Client returns the body of a ClientHello.
func (h *Hello) Client() []byte {
	var suites []byte
	for _, s := range h.Suites {
		suites = append(suites, u16(s)...)
	}
	return cat(u16(h.Version), h.Random, vec(1, h.SessionID), vec(2, suites), vec(1, h.Compressions), h.extensions())
}

// Server returns the body of a ServerHello.
func (h *Hello) Server() []byte {
	return cat(u16(h.Version), h.Random, vec(1, h.SessionID), u16(h.Suites[0]), h.Compressions[:1], h.extensions())
}

// Get returns the data of an extension.
func (h *Hello) Get(id uint16) ([]byte, bool) {
	for _, e := range h.Extensions {
		if e.ID == id {
			return e.Data, true
		}
	}
	return nil, false
}

// cursor reads a message; the first fault stays.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n > len(c.b) {
		c.bad = true
		return make([]byte, min(n, 64))
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) num(n int) int {
	v := 0
	for _, x := range c.take(n) {
		v = v<<8 | int(x)
	}
	return v
}

func (c *cursor) vec(n int) []byte { return c.take(c.num(n)) }

func (c *cursor) end() error {
	if c.bad {
		return errShort
	}
	if len(c.b) != 0 {
		return fmt.Errorf("%d bytes too many in the message", len(c.b))
	}
	return nil
}

func parseHello(body []byte, client bool) (*Hello, error) {
	c := &cursor{b: body}
	h := &Hello{Version: uint16(c.num(2)), Random: c.take(32), SessionID: c.vec(1)}
	if client {
		for s := (&cursor{b: c.vec(2)}); len(s.b) > 0 && !s.bad; {
			h.Suites = append(h.Suites, uint16(s.num(2)))
		}
		h.Compressions = c.vec(1)
	} else {
		h.Suites = []uint16{uint16(c.num(2))}
		h.Compressions = c.take(1)
	}
	if len(c.b) > 0 && !c.bad {
		for e := (&cursor{b: c.vec(2)}); len(e.b) > 0 && !e.bad; {
			h.Extensions = append(h.Extensions, Extension{uint16(e.num(2)), e.vec(2)})
		}
	}
	return h, c.end()
}

// CertificateList returns the body of a Certificate message.
func CertificateList(certs ...[]byte) []byte {
	var list []byte
	for _, c := range certs {
		list = append(list, vec(3, c)...)
	}
	return vec(3, list)
}

func parseCertificates(body []byte) ([][]byte, error) {
	c := &cursor{b: body}
	var out [][]byte
	for l := (&cursor{b: c.vec(3)}); len(l.b) > 0; {
		out = append(out, l.vec(3))
		if l.bad {
			return nil, errShort
		}
	}
	return out, c.end()
}

// CertificateRequest returns the body of that message.
func CertificateRequest(types []byte, names ...[]byte) []byte {
	var list []byte
	for _, n := range names {
		list = append(list, vec(2, n)...)
	}
	return cat(vec(1, types), vec(2, list))
}
