package h2

import (
	"strconv"
	"strings"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// Fields of answers are encoded (RFC 7541) without the dynamic table: what
// answers have in common is in the static one, what they have not, such as
// request ids, would only push the rest out of the other. So an encoder has no
// state; the first block of a connection, and one after each change of the
// client's setting, says that the table is empty.

// emptyTable is the size update that says so.
const emptyTable = 0x20

// appendStatus appends :status.
func appendStatus(b []byte, status int) []byte {
	switch status {
	case 200:
		return append(b, 0x88)
	case 204:
		return append(b, 0x89)
	case 206:
		return append(b, 0x8a)
	case 304:
		return append(b, 0x8b)
	case 400:
		return append(b, 0x8c)
	case 404:
		return append(b, 0x8d)
	case 500:
		return append(b, 0x8e)
	}
	return strconv.AppendInt(append(b, 8, 3), int64(status), 10)
}

// appendField appends a field whose name is in lower case. Control characters
// of the value become spaces: it never ends its line where somebody passes it on
// over HTTP/1.1.
func appendField[T string | []byte](b []byte, name T, value string) []byte {
	const plain, never = 0x00, 0x10 // without indexing, here or for good
	kind := byte(plain)
	if string(name) == "set-cookie" {
		kind = never
	}
	if i := nameIndex(string(name)); i > 0 {
		b = appendInt(b, kind, 4, i)
	} else {
		b = append(appendInt(append(b, kind), 0, 7, len(name)), name...)
	}
	return append(appendInt(b, 0, 7, len(value)), exchange.Clean(value)...)
}

// appendLength appends content-length.
func appendLength(b []byte, n int64) []byte {
	var digits [20]byte
	text := strconv.AppendInt(digits[:0], n, 10)
	b = appendInt(b, 0, 4, nameIndex("content-length"))
	return append(appendInt(b, 0, 7, len(text)), text...)
}

// appendAny appends a field whose name may have capitals.
func appendAny(b []byte, name, value string) []byte {
	var few [64]byte
	if len(name) > len(few) {
		return appendField(b, strings.ToLower(name), value)
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		few[i] = c
	}
	return appendField(b, few[:len(name)], value)
}

// appendInt appends n with a prefix of so many bits (RFC 7541 §5.1).
func appendInt(b []byte, first byte, bits uint, n int) []byte {
	most := 1<<bits - 1
	if n < most {
		return append(b, first|byte(n))
	}
	b = append(b, first|byte(most))
	for n -= most; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

// nameIndex returns where the static table has name, of those that answers have;
// 0: nowhere.
func nameIndex(name string) int {
	switch name {
	case "accept-ranges":
		return 18
	case "access-control-allow-origin":
		return 20
	case "age":
		return 21
	case "allow":
		return 22
	case "cache-control":
		return 24
	case "content-disposition":
		return 25
	case "content-encoding":
		return 26
	case "content-language":
		return 27
	case "content-length":
		return 28
	case "content-location":
		return 29
	case "content-range":
		return 30
	case "content-type":
		return 31
	case "date":
		return 33
	case "etag":
		return 34
	case "expires":
		return 36
	case "last-modified":
		return 44
	case "link":
		return 45
	case "location":
		return 46
	case "refresh":
		return 52
	case "retry-after":
		return 53
	case "server":
		return 54
	case "set-cookie":
		return 55
	case "strict-transport-security":
		return 56
	case "vary":
		return 59
	case "via":
		return 60
	case "www-authenticate":
		return 61
	}
	return 0
}
