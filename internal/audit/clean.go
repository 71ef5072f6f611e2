package audit

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxField is the most bytes of one field of a record; what is beyond is cut
// and marked (S33).
const MaxField = 4096

const cutMark = "...(cut)"

// Clean makes text from a peer safe for a line of a log, an alert or a
// terminal: control characters, those that turn the direction of text or are
// invisible, and bytes that are no UTF-8 become visible escapes, and the result
// has at most max bytes. Text that is safe is returned as it is.
func Clean(s string, max int) string {
	if len(s) <= max && !strings.ContainsFunc(s, unsafeRune) {
		return s
	}
	b := make([]byte, 0, min(len(s), max)+utf8.UTFMax)
	room := max - len(cutMark) // what stays when the text must be cut
	whole := 0                 // bytes of b that fit into room
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			b = append(b, `\x`...)
			b = append(b, hexByte(s[i])...)
		case unsafeRune(r):
			q := strconv.QuoteRuneToASCII(r)
			b = append(b, q[1:len(q)-1]...)
		default:
			b = append(b, s[i:i+size]...)
		}
		if len(b) > max {
			if room < 0 {
				return string(b[:whole])
			}
			return string(b[:whole]) + cutMark
		}
		if len(b) <= room {
			whole = len(b)
		}
		i += size
	}
	return string(b)
}

func hexByte(c byte) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[c>>4], digits[c&15]})
}

// unsafeRune reports what must not reach a terminal or a reader as it is:
// controls (C0, C1, DEL), format characters (bidirectional overrides, zero
// width joiners, tags), line separators, and bytes that are no UTF-8.
func unsafeRune(r rune) bool {
	if r < utf8.RuneSelf {
		return r < ' ' || r == 0x7f
	}
	return r == utf8.RuneError || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co)
}
