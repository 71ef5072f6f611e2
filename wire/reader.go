package wire

import (
	"bytes"
	"fmt"
	"io"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// A reader walks through one JSON text. It is for one goroutine.
type reader struct {
	d        *jsontext.Decoder
	p        Profile
	tolerant bool       // rows that are bad go to bad and fail nothing
	bad      []RowError // in the order of the rows
	err      error      // the text is not JSON; everything stops
}

// newReader refuses a text that is too large or nested too deep before any of
// it is decoded. Names that stand twice are the tables' to find, since one in a
// row must not fail the list.
func newReader(raw []byte, p Profile) (*reader, error) {
	most := p.MaxBytes
	if most == 0 {
		most = MaxMessage
	}
	if len(raw) > most {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(raw), most)
	}
	if nested(raw) > MaxDepth {
		return nil, fmt.Errorf("%w: at most %d levels", ErrTooDeep, MaxDepth)
	}
	return &reader{d: jsontext.NewDecoder(bytes.NewBuffer(raw), jsontext.AllowDuplicateNames(true)), p: p}, nil
}

// nested returns how deep objects and arrays stand in each other. It need not
// be right for a text that is no JSON, only never too small.
func nested(raw []byte) int {
	deepest, depth, quoted := 0, 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	return deepest
}

func (r *reader) fail(err error) bool {
	if err != nil && r.err == nil {
		r.err = err
	}
	return err == nil
}

// refuse notes a bad row of a tolerant list.
func (r *reader) refuse(row int, id string, err error) {
	if len(r.bad) >= maxRowFaults {
		err = errRowFaults
	}
	r.bad = append(r.bad, RowError{Row: row, ID: id, Err: err})
}

func (r *reader) token() bool {
	_, err := r.d.ReadToken()
	return r.fail(err)
}

func (r *reader) skip() bool { return r.fail(r.d.SkipValue()) }

// value returns the next value's text, valid until the next call.
func (r *reader) value() (jsontext.Value, bool) {
	v, err := r.d.ReadValue()
	return v, r.fail(err)
}

// end reports whether nothing but white space follows.
func (r *reader) end() bool {
	if r.err != nil {
		return false
	}
	if _, err := r.d.ReadToken(); err == nil {
		return r.fail(fmt.Errorf("bytes after the message, from offset %d", r.d.InputOffset()))
	} else if err != io.EOF {
		return r.fail(err)
	}
	return true
}

// name returns the next member's name, valid until the next call.
func (r *reader) name() ([]byte, bool) {
	v, ok := r.value()
	if !ok {
		return nil, false
	}
	if bytes.IndexByte(v, '\\') < 0 {
		return v[1 : len(v)-1], true
	}
	name, err := jsontext.AppendUnquote(nil, v)
	return name, r.fail(err)
}

// string reads a string.
func (r *reader) string() (s, why string) {
	v, ok := r.value()
	switch {
	case !ok:
		return "", ""
	case v.Kind() != jsontext.KindString:
		return "", wrongKind(v.Kind(), "a string")
	case bytes.IndexByte(v, '\\') < 0:
		return string(v[1 : len(v)-1]), ""
	}
	b, err := jsontext.AppendUnquote(nil, v)
	r.fail(err)
	return string(b), ""
}

// int reads a whole number: no fraction, no exponent, no string.
func (r *reader) int() (n int, why string) {
	v, ok := r.value()
	switch {
	case !ok:
		return 0, ""
	case v.Kind() != jsontext.KindNumber:
		return 0, wrongKind(v.Kind(), "a whole number")
	}
	n, err := strconv.Atoi(string(v))
	if err != nil {
		return 0, "not a whole number, or too large"
	}
	return n, ""
}

// array calls item at each element of an array. Item must read the element. The
// first fault is returned; the elements after it are read all the same.
func (r *reader) array(item func(i int) string) (why string) {
	if kind := r.d.PeekKind(); kind != jsontext.KindBeginArray {
		if !r.skip() {
			return ""
		}
		return wrongKind(kind, "an array")
	}
	if !r.token() {
		return ""
	}
	for i := 0; r.err == nil && r.d.PeekKind() != jsontext.KindEndArray; i++ {
		if w := item(i); why == "" {
			why = w
		}
	}
	if r.err == nil {
		r.token()
	}
	return why
}

// kinds names what JSON has.
var kinds = map[jsontext.Kind]string{
	jsontext.KindNull: "null", jsontext.KindTrue: "a boolean", jsontext.KindFalse: "a boolean",
	jsontext.KindString: "a string", jsontext.KindNumber: "a number",
	jsontext.KindBeginObject: "an object", jsontext.KindBeginArray: "an array",
}

func wrongKind(got jsontext.Kind, want string) string {
	return kinds[got] + ", must be " + want
}
