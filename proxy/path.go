package proxy

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// Why a target has no canonical form. They are details for the log; the
// client sees one reason, PathAmbiguous or RequestMalformed.
var (
	errTargetForm    = errors.New("the target is not a path")
	errTargetLong    = errors.New("the target is too long")
	errTargetByte    = errors.New("the target holds a byte that must be encoded")
	errPathEscape    = errors.New("the path holds a malformed escape")
	errPathSeparator = errors.New("the path holds an encoded separator or control character")
	errPathTwice     = errors.New("the path is encoded twice")
	errPathDots      = errors.New("the path holds a dot segment")
	errPathParam     = errors.New("the path holds a parameter")
	errPathTail      = errors.New("a path segment ends in a dot or a space")
	errPathUTF8      = errors.New("the path is not UTF-8")
	errPathLookalike = errors.New("the path holds a character that looks like a separator")
)

const maxTarget = 8 << 10

// canonicalTarget splits a request target into its canonical path and its
// query. The path is the one spelling under which the policy decides and that
// the upstream gets. A target that different programs may read differently has
// none: dot segments, parameters, encoded separators, double encoding, control
// characters, segments that end in a dot or a space (some file systems drop
// those), bytes that are not UTF-8 or look like a separator.
//
// In the canonical path unreserved characters are never escaped, the others
// keep one spelling, and runs of slashes are one. canonicalTarget is
// idempotent.
func canonicalTarget(target string) (path, query string, err error) {
	if len(target) > maxTarget {
		return "", "", errTargetLong
	}
	if target == "" || target[0] != '/' {
		return "", "", errTargetForm // absolute, authority and asterisk form, too
	}
	raw, query, _ := strings.Cut(target, "?")
	if path, err = canonicalPath(raw); err != nil {
		return "", "", err
	}
	if query, err = canonicalQuery(query); err != nil {
		return "", "", err
	}
	return path, query, nil
}

func canonicalPath(raw string) (string, error) {
	if plain(raw) {
		return raw, nil
	}
	dec, err := decodePath(raw)
	if err != nil {
		return "", err
	}
	if err := checkDecoded(dec); err != nil {
		return "", err
	}
	var b strings.Builder
	b.Grow(len(raw) + 8)
	last := byte(0)
	for i := 0; i < len(dec); i++ {
		c := dec[i]
		switch {
		case c == '/' && last == '/':
		case c == plusMark: // an escaped plus stays escaped: some programs read a bare one as a space
			b.WriteString("%2B")
		case pathLiteral[c]:
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(upperHex[c>>4])
			b.WriteByte(upperHex[c&15])
		}
		last = c
	}
	return b.String(), nil
}

const (
	upperHex = "0123456789ABCDEF"
	plusMark = 0x01 // stands for "%2B" in a decoded path; real control characters are refused before
)

// plain reports whether raw is canonical at sight: most paths are.
func plain(raw string) bool {
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if !pathLiteral[c] || c == '.' && (i+1 == len(raw) || raw[i+1] == '/') || c == '/' && i+1 < len(raw) && (raw[i+1] == '/' || raw[i+1] == '.') {
			return false
		}
	}
	return true
}

// pathLiteral are the bytes that stand for themselves in a canonical path.
var pathLiteral = func() (t [256]bool) {
	for _, c := range []byte("/ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,=:@") {
		t[c] = true
	}
	return t
}()

// decodePath undoes one level of escapes and refuses what must not be there.
func decodePath(raw string) ([]byte, error) {
	dec := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		switch {
		case c == '%':
			if i+2 >= len(raw) || unhex(raw[i+1]) < 0 || unhex(raw[i+2]) < 0 {
				return nil, errPathEscape
			}
			c = byte(unhex(raw[i+1])<<4 | unhex(raw[i+2]))
			i += 2
			switch {
			case c < 0x20 || c == 0x7f || c == '/' || c == '\\':
				return nil, errPathSeparator
			case c == ';':
				return nil, errPathParam
			case c == '+':
				c = plusMark
			}
		case c == '\\':
			return nil, errPathSeparator
		case c == ';':
			return nil, errPathParam
		case !pathLiteral[c] && !strings.ContainsRune("[]|^{}", rune(c)) || c >= 0x80:
			return nil, errTargetByte
		}
		dec = append(dec, c)
	}
	return dec, nil
}

func checkDecoded(dec []byte) error {
	for i := 0; i < len(dec); i++ {
		if dec[i] == '%' && (i+2 < len(dec) && unhex(dec[i+1]) >= 0 && unhex(dec[i+2]) >= 0 || i+1 < len(dec) && dec[i+1]|0x20 == 'u') {
			return errPathTwice
		}
	}
	if !utf8.Valid(dec) {
		return errPathUTF8
	}
	s := string(dec)
	if strings.ContainsAny(s, "\u2024\u2025\u2044\u2215\u2216\u29f5\u29f8\u29f9\ufe52\ufe68\uff0e\uff0f\uff1b\uff3c\uff05\u0085\u2028\u2029\ufeff") {
		return errPathLookalike
	}
	for seg := range strings.SplitSeq(s, "/") {
		switch {
		case seg == "." || seg == "..":
			return errPathDots
		case strings.HasSuffix(seg, ".") || strings.HasSuffix(seg, " "):
			return errPathTail
		}
	}
	return nil
}

// canonicalQuery refuses what would break a request line, and escapes bytes
// beyond ASCII; the rest of a query is the application's own.
func canonicalQuery(q string) (string, error) {
	escape := false
	for i := 0; i < len(q); i++ {
		c := q[i]
		if c <= ' ' || c == 0x7f || c == '#' {
			return "", errTargetByte
		}
		escape = escape || c >= 0x80
	}
	if !escape {
		return q, nil
	}
	var b strings.Builder
	for i := 0; i < len(q); i++ {
		if c := q[i]; c < 0x80 {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(upperHex[c>>4])
			b.WriteByte(upperHex[c&15])
		}
	}
	return b.String(), nil
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
