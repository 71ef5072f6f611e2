package wire

import (
	"github.com/go-json-experiment/json/jsontext"
)

// A table is the rule of one table: its number and its fields in the
// standard's order. It stands beside the type that it rules.
type table[M any] struct {
	number  int
	fields  []field[M]
	success func(*M) int      // the code that fields of onSuccess wait for; nil: there are none
	key     func(*M) string   // a row's first field, which names it; nil: no row, or a nameless one
	extra   func(*M, *faults) // a check over several sound fields; nil: none
}

// need says when a field must be there.
type need uint8

const (
	required  need = iota
	optional       // an empty value means that it is absent
	onSuccess      // due when code is 200, and only then
)

// A field is one line of a table.
type field[M any] struct {
	name    string
	aliases []string // other names that lax takes (Q1)
	need    need
	list    bool // an array: empty is a value in every profile
	rows    bool // its rows are checked while they are read

	// read stores the JSON value that the reader stands at. It returns what is
	// wrong with the value's type, or ""; faults of rows go to f.
	read func(r *reader, m *M, f *faults) string
	// empty reports whether the value counts as absent.
	empty func(m *M) bool
	// check returns what is wrong with a value that is not empty, or "". Faults
	// of rows go to f.
	check func(m *M, p Profile, f *faults) string
}

// validate checks a message, however it was made.
func (t *table[M]) validate(m *M, p Profile) error {
	f := faults{table: t.number}
	for i := range t.fields {
		t.checkField(&t.fields[i], m, p, &f)
	}
	if t.extra != nil && len(f.list) == 0 {
		t.extra(m, &f)
	}
	return f.err()
}

// checkField checks the value of one field.
func (t *table[M]) checkField(d *field[M], m *M, p Profile, f *faults) {
	empty := d.empty(m)
	switch {
	case d.need == required && empty:
		f.add(d.name, "empty")
		return
	case d.need == onSuccess && empty && t.success(m) == Success:
		f.add(d.name, "missing, required when code is 200")
		return
	case d.need == onSuccess && !empty && t.success(m) != Success && p.Strict:
		f.add(d.name, "present, though code is not 200")
		return
	case empty:
		return
	}
	f.add(d.name, d.check(m, p, f))
}

// id returns the row's key if that field is sound, else "".
func (t *table[M]) id(m *M, p Profile) string {
	if t.key == nil {
		return ""
	}
	f := faults{table: t.number}
	if t.checkField(&t.fields[0], m, p, &f); len(f.list) > 0 {
		return ""
	}
	return t.key(m)
}

// decode reads the object that r stands at into m, and checks it. It returns
// the faults; when r.err is set, the text itself is broken and nothing counts.
func (t *table[M]) decode(r *reader, m *M) error {
	f := faults{table: t.number}
	if kind := r.d.PeekKind(); kind != jsontext.KindBeginObject {
		if r.skip() {
			f.add("row", wrongKind(kind, "an object"))
		}
		return f.err()
	}
	if !r.token() {
		return nil
	}

	// 1 each member of the object, in the order in which it was sent
	var named, seen, broken uint32 // named, with a value, with a bad one; bits are indices in t.fields
	var others map[string]bool
	for r.err == nil && r.d.PeekKind() != jsontext.KindEndObject {
		name, ok := r.name()
		if !ok {
			return nil
		}
		i := t.find(name, r.p)
		if i < 0 {
			others = t.foreign(r, name, others, &f)
			continue
		}
		d, bit := &t.fields[i], uint32(1)<<i
		if named&bit != 0 {
			f.add(d.name, "given twice")
			broken |= bit
			r.skip()
			continue
		}
		named |= bit
		if d.need != required && !r.p.Strict && r.d.PeekKind() == jsontext.KindNull {
			r.skip()
			continue
		}
		seen |= bit
		if why := d.read(r, m, &f); why != "" {
			f.add(d.name, why)
			broken |= bit
		}
	}
	if !r.token() {
		return nil
	}

	// 2 each field of the table: there, and right
	for i := range t.fields {
		d, bit := &t.fields[i], uint32(1)<<i
		switch {
		case broken&bit != 0, seen&bit != 0 && d.rows:
		case d.need == onSuccess && (broken|^seen)&1 != 0: // the first field is the code, and it is not known
		case d.need == required && seen&bit == 0:
			f.add(d.name, "missing")
		case d.need != required && !d.list && seen&bit != 0 && r.p.Strict && d.empty(m):
			f.add(d.name, "empty, leave it out")
		default:
			t.checkField(d, m, r.p, &f)
		}
	}

	// 3 what several fields say together
	if t.extra != nil && len(f.list) == 0 {
		t.extra(m, &f)
	}
	return f.err()
}

// find returns the index of the field called name, or -1.
func (t *table[M]) find(name []byte, p Profile) int {
	for i := range t.fields {
		if string(name) == t.fields[i].name {
			return i
		}
		if !p.Strict {
			for _, a := range t.fields[i].aliases {
				if string(name) == a {
					return i
				}
			}
		}
	}
	return -1
}

// foreign passes over a member that the table does not know.
func (t *table[M]) foreign(r *reader, name []byte, others map[string]bool, f *faults) map[string]bool {
	key := string(name)
	v, ok := r.value()
	switch {
	case !ok:
	case r.p.Strict:
		f.add(foreignName(key), "unknown field")
	case others[key]:
		f.add(foreignName(key), "given twice")
	case !v.IsValid(): // the reader itself lets names stand twice
		f.add(foreignName(key), "holds a name twice")
	default:
		if others == nil {
			others = make(map[string]bool)
		}
		others[key] = true
	}
	return others
}
