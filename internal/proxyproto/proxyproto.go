// Package proxyproto reads and writes the header of the PROXY protocol, by which
// a forwarder in front tells the address of its client: version 1, a line of
// text, and version 2, binary (the specification of HAProxy, 2020/03/05).
//
// [Read] is strict: a header can be read in one way only, or is refused. Who
// may send one at all is its caller's matter.
package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// Header is what a forwarder says of a connection.
type Header struct {
	// Local is true when the forwarder speaks for itself (a health check), or
	// does not know the addresses: those of the connection hold.
	Local    bool
	From, To netip.AddrPort // the client and what it connected to
}

// ErrMalformed is wrapped by the errors of [Read] that are not its reader's.
var ErrMalformed = errors.New("malformed PROXY header")

func fault(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

const (
	signature = "\r\n\r\n\x00\r\nQUIT\n" // of version 2
	prefix    = "PROXY "                 // of version 1
	maxLine   = 107                      // of version 1, with its line end
	maxBody   = 4096                     // of version 2, addresses and TLVs
	tlvCRC    = 0x03
)

// Read reads one header and not a byte more. With an error the Header is zero.
func Read(r io.Reader) (Header, error) {
	h, err := read(r)
	if err != nil {
		return Header{}, err
	}
	return h, nil
}

func read(r io.Reader) (Header, error) {
	var b [maxLine + 1]byte
	if _, err := io.ReadFull(r, b[:len(signature)]); err != nil {
		return Header{}, err
	}
	switch {
	case string(b[:len(signature)]) == signature:
		return readBinary(r)
	case string(b[:len(prefix)]) == prefix:
	default:
		return Header{}, fault("the connection begins with %q", b[:len(signature)])
	}
	n := len(signature)
	for ; b[n-1] != '\n'; n++ { // a byte at a time: what follows is not ours
		if n == maxLine {
			return Header{}, fault("a line of more than %d bytes", maxLine)
		}
		if _, err := io.ReadFull(r, b[n:n+1]); err != nil {
			return Header{}, err
		}
	}
	return parseLine(string(b[len(prefix):n]))
}

// parseLine reads version 1 behind its prefix.
func parseLine(line string) (Header, error) {
	line, ok := strings.CutSuffix(line, "\r\n")
	if !ok {
		return Header{}, fault("a line without CR")
	}
	if line == "UNKNOWN" || strings.HasPrefix(line, "UNKNOWN ") {
		return Header{Local: true}, nil
	}
	f := strings.Split(line, " ")
	if len(f) != 5 || f[0] != "TCP4" && f[0] != "TCP6" {
		return Header{}, fault("line %q", line)
	}
	var h Header
	var err error
	if h.From, err = parseEnd(f[0], f[1], f[3]); err != nil {
		return Header{}, err
	}
	h.To, err = parseEnd(f[0], f[2], f[4])
	return h, err
}

func parseEnd(family, host, port string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(host)
	if err != nil || a.Zone() != "" || a.Is4() != (family == "TCP4") {
		return netip.AddrPort{}, fault("address %q of %s", host, family)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != port {
		return netip.AddrPort{}, fault("port %q", port)
	}
	return end(a, uint16(n))
}

// end makes one end of a connection, and refuses addresses that none can have.
func end(a netip.Addr, port uint16) (netip.AddrPort, error) {
	a = a.Unmap()
	if a.IsUnspecified() || a.IsMulticast() {
		return netip.AddrPort{}, fault("address %s", a)
	}
	return netip.AddrPortFrom(a, port), nil
}

// readBinary reads version 2 behind its signature.
func readBinary(r io.Reader) (Header, error) {
	head := make([]byte, 16, 16+maxBody)
	copy(head, signature)
	if _, err := io.ReadFull(r, head[12:]); err != nil {
		return Header{}, err
	}
	n := int(binary.BigEndian.Uint16(head[14:]))
	if head[12]>>4 != 2 || head[12]&15 > 1 {
		return Header{}, fault("version and command 0x%02x", head[12])
	}
	if n > maxBody {
		return Header{}, fault("%d bytes, at most %d", n, maxBody)
	}
	whole := head[:16+n]
	if _, err := io.ReadFull(r, whole[16:]); err != nil {
		return Header{}, err
	}
	body := whole[16:]
	if head[12]&15 == 0 { // LOCAL: the rest is to be skipped
		return Header{Local: true}, nil
	}
	var h Header
	size := 0
	switch head[13] {
	case 0x00: // not known to the forwarder
		return Header{Local: true}, nil
	case 0x11:
		size = 4
	case 0x21:
		size = 16
	default:
		return Header{}, fault("family and protocol 0x%02x", head[13])
	}
	if len(body) < 2*size+4 {
		return Header{}, fault("%d bytes for the addresses", len(body))
	}
	from, _ := netip.AddrFromSlice(body[:size])
	to, _ := netip.AddrFromSlice(body[size : 2*size])
	var err error
	if h.From, err = end(from, binary.BigEndian.Uint16(body[2*size:])); err != nil {
		return Header{}, err
	}
	if h.To, err = end(to, binary.BigEndian.Uint16(body[2*size+2:])); err != nil {
		return Header{}, err
	}
	return h, checkTLVs(whole, 16+2*size+4)
}

// checkTLVs wants well-formed extensions from at on, and the checksum, when
// there is one, to be right.
func checkTLVs(whole []byte, at int) error {
	sums := 0
	for at < len(whole) {
		if len(whole)-at < 3 {
			return fault("half an extension")
		}
		kind, n := whole[at], int(binary.BigEndian.Uint16(whole[at+1:]))
		value := at + 3
		if at = value + n; at > len(whole) {
			return fault("an extension of %d bytes", n)
		}
		if kind != tlvCRC {
			continue
		}
		if sums++; n != 4 || sums > 1 {
			return fault("checksum")
		}
		want := binary.BigEndian.Uint32(whole[value:])
		zeroed := bytes.Clone(whole)
		clear(zeroed[value : value+4])
		if crc32.Checksum(zeroed, crc32.MakeTable(crc32.Castagnoli)) != want {
			return fault("the checksum is wrong")
		}
	}
	return nil
}

// Append appends a header of version 2 for a TCP connection: LOCAL when one of
// both ends is not known, else PROXY with IPv4 or, when one of them is IPv6,
// v4-mapped IPv6 addresses.
func Append(b []byte, from, to netip.AddrPort) []byte {
	at := len(b)
	b = append(append(b, signature...), 0x20, 0, 0, 0)
	if !from.IsValid() || !to.IsValid() {
		return b
	}
	b[at+12] |= 1
	if f, t := from.Addr().Unmap(), to.Addr().Unmap(); f.Is4() && t.Is4() {
		b[at+13] = 0x11
		b = append(append(b, f.AsSlice()...), t.AsSlice()...)
	} else {
		b[at+13] = 0x21
		f16, t16 := f.As16(), t.As16()
		b = append(append(b, f16[:]...), t16[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	binary.BigEndian.PutUint16(b[at+14:], uint16(len(b)-at-16))
	return b
}
