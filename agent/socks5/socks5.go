// Package socks5 reads and writes the messages of a SOCKS5 server: RFC 1928,
// without authentication. It reads exactly the bytes of a message and no more,
// keeps no state and sets no deadline; that is the caller's.
//
// A server calls ReadGreeting, ReadRequest and WriteReply in this order;
// ParseDatagram and AppendDatagram are for UDP ASSOCIATE.
package socks5

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
)

// Command is what a client asks for.
type Command byte

// The commands of RFC 1928, clause 4.
const (
	Connect   Command = 1
	Bind      Command = 2
	Associate Command = 3
)

// Code is the answer to a request.
type Code byte

// The codes of RFC 1928, clause 6.
const (
	Granted            Code = 0x00
	GeneralFailure     Code = 0x01
	NotAllowed         Code = 0x02 // not allowed by ruleset
	NetworkUnreachable Code = 0x03
	HostUnreachable    Code = 0x04
	Refused            Code = 0x05
	Expired            Code = 0x06
	CommandUnknown     Code = 0x07
	AddressUnknown     Code = 0x08
)

const (
	version    = 5
	noAuth     = 0
	noMethod   = 0xff
	typeIPv4   = 1
	typeName   = 3
	typeIPv6   = 4
	maxNameLen = 253
)

// ErrNotSOCKS5 says that the first byte is of another protocol.
var ErrNotSOCKS5 = errors.New("socks5: not SOCKS version 5")

// ErrNoMethod says that the client insists on a way of authentication; the
// refusal has been written.
var ErrNoMethod = errors.New("socks5: the client does not offer \"no authentication\"")

// RequestError is a request that is malformed or not served; Code is the
// answer to write.
type RequestError struct {
	Code Code
	What string
}

// Error says what is wrong.
func (e *RequestError) Error() string { return "socks5: " + e.What }

// Target is a destination: a name or an address, and a port.
type Target struct {
	Name string     // set when the client sent a name
	Addr netip.Addr // set when the client sent an address, unmapped
	Port uint16
}

// String returns host:port.
func (t Target) String() string {
	host := t.Name
	if host == "" {
		host = t.Addr.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(t.Port)))
}

// Request is what the client wants.
type Request struct {
	Command Command
	Target  Target
}

// Greet reads the client's greeting and answers it: no authentication, or
// nothing that fits.
func Greet(rw io.ReadWriter) error {
	var head [2]byte
	if _, err := io.ReadFull(rw, head[:1]); err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	if head[0] != version {
		return fmt.Errorf("%w (first byte 0x%02x)", ErrNotSOCKS5, head[0])
	}
	if _, err := io.ReadFull(rw, head[1:]); err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(rw, methods); err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	answer := [2]byte{version, noMethod}
	for _, m := range methods {
		if m == noAuth {
			answer[1] = noAuth
		}
	}
	if _, err := rw.Write(answer[:]); err != nil {
		return fmt.Errorf("answer greeting: %w", err)
	}
	if answer[1] != noAuth {
		return ErrNoMethod
	}
	return nil
}

// ReadRequest reads one request. An error that the client should hear of is a
// [*RequestError].
func ReadRequest(r io.Reader) (Request, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Request{}, fmt.Errorf("read request: %w", err)
	}
	if head[0] != version || head[2] != 0 {
		return Request{}, &RequestError{GeneralFailure, "malformed request"}
	}
	q := Request{Command: Command(head[1])}
	var buf [256]byte
	n := 0
	switch head[3] {
	case typeIPv4:
		n = 4
	case typeIPv6:
		n = 16
	case typeName:
		if _, err := io.ReadFull(r, buf[:1]); err != nil {
			return Request{}, fmt.Errorf("read request: %w", err)
		}
		n = int(buf[0])
	default:
		return Request{}, &RequestError{AddressUnknown, fmt.Sprintf("unknown address type %d", head[3])}
	}
	var tail [257]byte
	b := tail[:n+2]
	if _, err := io.ReadFull(r, b); err != nil {
		return Request{}, fmt.Errorf("read request: %w", err)
	}
	t, err := target(head[3], b[:n], b[n:])
	if err != nil {
		return Request{}, err
	}
	q.Target = t
	switch q.Command {
	case Connect, Associate:
		return q, nil
	}
	return q, &RequestError{CommandUnknown, fmt.Sprintf("command %d is not served", q.Command)}
}

// target makes a Target of the host's bytes and the port's two.
func target(kind byte, host, port []byte) (Target, error) {
	t := Target{Port: binary.BigEndian.Uint16(port)}
	if kind != typeName {
		a, _ := netip.AddrFromSlice(host) // 4 or 16 bytes by the type
		t.Addr = a.Unmap()
		return t, nil
	}
	if a, err := netip.ParseAddr(string(host)); err == nil && a.Zone() == "" {
		t.Addr = a.Unmap() // an address that was sent as a name
		return t, nil
	}
	if !validName(host) {
		return Target{}, &RequestError{AddressUnknown, "malformed host name"}
	}
	t.Name = string(host)
	return t, nil
}

// validName reports whether b can be a host name: letters, digits, dots,
// hyphens and underscores. Everything else (control characters, blanks,
// slashes) is refused before it can reach a log or a lookup.
func validName(b []byte) bool {
	if len(b) == 0 || len(b) > maxNameLen {
		return false
	}
	for _, c := range b {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// WriteReply answers a request. bound is the address that the client is told;
// the zero value is written as 0.0.0.0:0.
func WriteReply(w io.Writer, c Code, bound netip.AddrPort) error {
	b := append(make([]byte, 0, 22), version, byte(c), 0)
	_, err := w.Write(appendAddr(b, bound))
	return err
}

func appendAddr(b []byte, ap netip.AddrPort) []byte {
	switch a := ap.Addr().Unmap(); {
	case a.Is6():
		b = append(append(b, typeIPv6), a.AsSlice()...)
	case a.Is4():
		b = append(append(b, typeIPv4), a.AsSlice()...)
	default:
		b = append(b, typeIPv4, 0, 0, 0, 0)
	}
	return binary.BigEndian.AppendUint16(b, ap.Port())
}

// ParseDatagram splits a datagram of an association into its destination and
// its payload, a part of b. Fragments are refused, as RFC 1928 permits.
func ParseDatagram(b []byte) (Target, []byte, error) {
	bad := &RequestError{GeneralFailure, "malformed datagram"}
	if len(b) < 4 || b[0] != 0 || b[1] != 0 {
		return Target{}, nil, bad
	}
	if b[2] != 0 {
		return Target{}, nil, &RequestError{GeneralFailure, "fragmented datagram"}
	}
	kind, b := b[3], b[4:]
	n := 0
	switch kind {
	case typeIPv4:
		n = 4
	case typeIPv6:
		n = 16
	case typeName:
		if len(b) < 1 {
			return Target{}, nil, bad
		}
		n, b = int(b[0]), b[1:]
	default:
		return Target{}, nil, &RequestError{AddressUnknown, fmt.Sprintf("unknown address type %d", kind)}
	}
	if len(b) < n+2 {
		return Target{}, nil, bad
	}
	t, err := target(kind, b[:n], b[n:n+2])
	if err != nil {
		return Target{}, nil, err
	}
	return t, b[n+2:], nil
}

// AppendDatagram appends to b a datagram that came from t with payload. A name
// is written as such.
func AppendDatagram(b []byte, t Target, payload []byte) []byte {
	b = append(b, 0, 0, 0)
	if t.Name != "" {
		b = append(append(b, typeName, byte(len(t.Name))), t.Name...)
		b = binary.BigEndian.AppendUint16(b, t.Port)
	} else {
		b = appendAddr(b, netip.AddrPortFrom(t.Addr, t.Port))
	}
	return append(b, payload...)
}
