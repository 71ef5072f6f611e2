package exchange

import "strings"

// JoinCookies makes one field of the parts of Cookie, in place (RFC 9113 §8.2.3,
// RFC 9114 §4.2.1). Names are in lower case.
func JoinCookies(h Header) Header {
	parts, bytes := 0, 0
	for i := range h {
		if h[i].Name == "cookie" {
			parts++
			bytes += len(h[i].Value) + 2
		}
	}
	if parts < 2 {
		return h
	}
	var all strings.Builder // grown once: a client may send thousands of parts
	all.Grow(bytes)
	first := -1
	out := h[:0]
	for _, f := range h {
		if f.Name != "cookie" {
			out = append(out, f)
			continue
		}
		if first < 0 {
			first = len(out)
			out = append(out, f)
		} else {
			all.WriteString("; ")
		}
		all.WriteString(f.Value)
	}
	out[first].Value = all.String()
	return out
}

// Clean makes spaces of control characters: a value never ends its line where
// somebody passes it on over HTTP/1.1. Every other byte stays.
func Clean(v string) string {
	if !HasControl(v) {
		return v
	}
	b := []byte(v)
	for i, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			b[i] = ' '
		}
	}
	return string(b)
}
