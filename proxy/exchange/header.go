package exchange

import (
	"slices"
	"strings"
)

// HasControl reports a control character other than a tab: no field value may
// hold one.
func HasControl[T string | []byte](v T) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	for len(v) >= 8 {
		// Eight bytes at once: bytes below 0x20 or equal to 0x7f set their top bit.
		// Bytes of 0x80 and more may, too; those and tabs go the slow way.
		w := uint64(v[0]) | uint64(v[1])<<8 | uint64(v[2])<<16 | uint64(v[3])<<24 |
			uint64(v[4])<<32 | uint64(v[5])<<40 | uint64(v[6])<<48 | uint64(v[7])<<56
		if ((w-0x20*ones)|(w+ones)|w)&tops != 0 && slowControl(v[:8]) {
			return true
		}
		v = v[8:]
	}
	return slowControl(v)
}

func slowControl[T string | []byte](v T) bool {
	for i := range len(v) {
		if c := v[i]; c < ' ' && c != '\t' || c == 0x7f {
			return true
		}
	}
	return false
}

// Field is one header field.
type Field struct{ Name, Value string }

// Is reports whether the field is called name.
func (f *Field) Is(name string) bool { return same(f.Name, name) }

// Header is an ordered list of fields. Names keep the spelling in which they
// came; they are compared without case.
type Header []Field

// same compares two names without regard to case. Names have no letters beyond
// ASCII, so that other lengths are other names.
func same(a, b string) bool { return len(a) == len(b) && strings.EqualFold(a, b) }

// Get returns the first value of name, or "".
func (h Header) Get(name string) string {
	for i := range h {
		if same(h[i].Name, name) {
			return h[i].Value
		}
	}
	return ""
}

// Without removes every field called name, in place, and returns the rest.
func (h Header) Without(name string) Header {
	return slices.DeleteFunc(h, func(f Field) bool { return same(f.Name, name) })
}

// Values returns every value of name.
func (h Header) Values(name string) []string { return h.AppendValues(nil, name) }

// AppendValues appends every value of name to out.
func (h Header) AppendValues(out []string, name string) []string {
	for i := range h {
		if same(h[i].Name, name) {
			out = append(out, h[i].Value)
		}
	}
	return out
}

// Has reports whether there is a field called name.
func (h Header) Has(name string) bool {
	for i := range h {
		if same(h[i].Name, name) {
			return true
		}
	}
	return false
}

// Named returns the fields that have one of names: those of a trailer that a
// head announced.
func (h Header) Named(names []string) Header {
	var out Header
	for i := range h {
		if slices.ContainsFunc(names, h[i].Is) {
			out = append(out, h[i])
		}
	}
	return out
}

// Add appends a field.
func (h *Header) Add(name, value string) { *h = append(*h, Field{name, value}) }

// HasToken reports whether one of name's values, read as a comma-separated
// list, holds token without regard to case.
func (h Header) HasToken(name, token string) bool {
	found := false
	h.EachToken(name, func(t string) { found = found || same(t, token) })
	return found
}

// EachToken calls f with each member of name's values, read as a
// comma-separated list.
func (h Header) EachToken(name string, f func(string)) {
	for i := range h {
		if !same(h[i].Name, name) {
			continue
		}
		for t := range strings.SplitSeq(h[i].Value, ",") {
			if t = strings.Trim(t, " \t"); t != "" {
				f(t)
			}
		}
	}
}

// Cookie returns the value of the first cookie called name, and whether there
// is one.
func (h Header) Cookie(name string) (string, bool) {
	for i := range h {
		if !same(h[i].Name, "Cookie") {
			continue
		}
		for c := range strings.SplitSeq(h[i].Value, ";") {
			if k, v, ok := strings.Cut(strings.Trim(c, " \t"), "="); ok && k == name {
				return v, true
			}
		}
	}
	return "", false
}
