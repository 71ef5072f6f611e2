package wire

import (
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
)

// decodable is what each table's type has besides [Message].
type decodable interface {
	decode(r *reader) error
}

// Decode reads one message of type M and validates it. Names are taken in exact
// case; a name given twice is refused, an unknown one is refused by a strict
// profile and ignored by a lax one (M53). An optional field that is null or
// empty counts as absent in lax and is a fault in strict. The error joins a
// [*FieldError] for each fault (of a row: in a [*RowError]), or is a
// [*SyntaxError], or wraps [ErrTooLarge] or [ErrTooDeep].
func Decode[M any, P interface {
	*M
	Message
}](raw []byte, p Profile) (*M, error) {
	m := new(M)
	_, err := decodeObject(P(m), raw, p, false)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// DecodeGrantList reads Table 6. A bad row does not fail the list: it is left
// out of Data and named, so that it grants nothing and delays no revocation.
// The error is for everything outside the rows.
func DecodeGrantList(raw []byte, p Profile) (*GrantList, []RowError, error) {
	l := new(GrantList)
	bad, err := decodeObject(l, raw, p, true)
	if err != nil {
		return nil, nil, err
	}
	return l, bad, nil
}

// DecodePolicyList reads Table 8 as [DecodeGrantList] reads Table 6. The scope
// of a refused row must be closed; its ID says which row it was, if that much
// could be read.
func DecodePolicyList(raw []byte, p Profile) (*PolicyList, []RowError, error) {
	l := new(PolicyList)
	bad, err := decodeObject(l, raw, p, true)
	if err != nil {
		return nil, nil, err
	}
	return l, bad, nil
}

// DecodeRows reads a JSON array of rows, such as the grants of a delta. A bad
// row is left out and named.
func DecodeRows[M any, P interface {
	*M
	Message
}](raw []byte, p Profile) ([]M, []RowError, error) {
	n := P(new(M)).Table()
	r, err := newReader(raw, p)
	if err != nil {
		return nil, nil, fmt.Errorf("decode rows of Table %d: %w", n, err)
	}
	var list []M
	why := r.array(func(i int) string {
		m := new(M)
		switch err := decodeWith(P(m), r); {
		case r.err != nil:
		case err == nil:
			list = append(list, *m)
		default:
			r.refuse(i, rowID(P(m), r.p), err)
		}
		return ""
	})
	if r.end(); r.err != nil {
		return nil, nil, &SyntaxError{Table: n, Rule: "malformed JSON", Err: r.err}
	}
	if why != "" {
		return nil, nil, &SyntaxError{Table: n, Rule: why}
	}
	return list, r.bad, nil
}

func decodeObject(m Message, raw []byte, p Profile, tolerant bool) ([]RowError, error) {
	r, err := newReader(raw, p)
	if err != nil {
		return nil, fmt.Errorf("decode Table %d: %w", m.Table(), err)
	}
	r.tolerant = tolerant
	if kind := r.d.PeekKind(); kind != jsontext.KindBeginObject && kinds[kind] != "" {
		return nil, &SyntaxError{Table: m.Table(), Rule: wrongKind(kind, "an object")}
	}
	err = decodeWith(m, r)
	if r.end(); r.err != nil {
		return nil, &SyntaxError{Table: m.Table(), Rule: "malformed JSON", Err: r.err}
	}
	return r.bad, err
}

func decodeWith(m Message, r *reader) error {
	d, ok := m.(decodable)
	if !ok {
		return fmt.Errorf("decode Table %d: %T is no type of this package", m.Table(), m)
	}
	return d.decode(r)
}

// rowID names a refused row, where its type has a name for rows.
func rowID(m Message, p Profile) string {
	if k, ok := m.(interface{ rowID(Profile) string }); ok {
		return k.rowID(p)
	}
	return ""
}
