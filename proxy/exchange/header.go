package exchange

import "strings"

// Field is one header field.
type Field struct{ Name, Value string }

// Header is an ordered list of fields. Names keep the spelling in which they
// came; they are compared without case.
type Header []Field

// Get returns the first value of name, or "".
func (h Header) Get(name string) string {
	for i := range h {
		if strings.EqualFold(h[i].Name, name) {
			return h[i].Value
		}
	}
	return ""
}

// Values returns every value of name.
func (h Header) Values(name string) []string {
	var out []string
	for i := range h {
		if strings.EqualFold(h[i].Name, name) {
			out = append(out, h[i].Value)
		}
	}
	return out
}

// Has reports whether there is a field called name.
func (h Header) Has(name string) bool {
	for i := range h {
		if strings.EqualFold(h[i].Name, name) {
			return true
		}
	}
	return false
}

// Add appends a field.
func (h *Header) Add(name, value string) { *h = append(*h, Field{name, value}) }

// HasToken reports whether one of name's values, read as a comma-separated
// list, holds token without regard to case.
func (h Header) HasToken(name, token string) bool {
	found := false
	h.EachToken(name, func(t string) { found = found || strings.EqualFold(t, token) })
	return found
}

// EachToken calls f with each member of name's values, read as a
// comma-separated list.
func (h Header) EachToken(name string, f func(string)) {
	for i := range h {
		if !strings.EqualFold(h[i].Name, name) {
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
		if !strings.EqualFold(h[i].Name, "Cookie") {
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
