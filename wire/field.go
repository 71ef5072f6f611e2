package wire

import (
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
)

// The kinds of field. Each is required until [field.as] says otherwise, but for
// the arrays, which the standard leaves optional everywhere.

// text is a string.
func text[M any](name string, ok rule, at func(*M) *string) field[M] {
	return field[M]{
		name:  name,
		read:  func(r *reader, m *M, _ *faults) (why string) { *at(m), why = r.string(); return why },
		empty: func(m *M) bool { return *at(m) == "" },
		check: func(m *M, p Profile, _ *faults) string { return ok(*at(m), p) },
	}
}

// number is a whole number from low to high.
func number[M any](name string, low, high int, at func(*M) *int) field[M] {
	return integer(name, at, func(n int, _ Profile) string {
		if n < low || n > high {
			return fmt.Sprintf("%d, must be %d to %d", n, low, high)
		}
		return ""
	})
}

// oneOf is a whole number, one of two.
func oneOf[M any](name string, a, b int, at func(*M) *int) field[M] {
	return integer(name, at, func(n int, _ Profile) string {
		if n != a && n != b {
			return fmt.Sprintf("%d, must be %d or %d", n, a, b)
		}
		return ""
	})
}

func integer[M any](name string, at func(*M) *int, ok func(int, Profile) string) field[M] {
	return field[M]{
		name:  name,
		read:  func(r *reader, m *M, _ *faults) (why string) { *at(m), why = r.int(); return why },
		empty: func(*M) bool { return false },
		check: func(m *M, p Profile, _ *faults) string { return ok(*at(m), p) },
	}
}

// degrees is a longitude or latitude of at most most × 10^-7 degrees.
func degrees[M any](name string, most Coordinate, at func(*M) *Coordinate) field[M] {
	return field[M]{
		name:  name,
		read:  func(r *reader, m *M, _ *faults) (why string) { *at(m), why = r.coordinate(); return why },
		empty: func(*M) bool { return false },
		check: func(m *M, _ Profile, _ *faults) string {
			if c := *at(m); c < -most || c > most {
				return fmt.Sprintf("%d, must be %d to %d", c, -most, most)
			}
			return ""
		},
	}
}

// texts is an array of strings.
func texts[M any](name string, ok rule, at func(*M) *[]string) field[M] {
	return field[M]{
		name: name,
		need: optional,
		list: true,
		read: func(r *reader, m *M, _ *faults) string {
			return r.array(func(i int) string {
				s, why := r.string()
				*at(m) = append(*at(m), s)
				return element(i, why)
			})
		},
		empty: func(m *M) bool { return len(*at(m)) == 0 },
		check: func(m *M, p Profile, _ *faults) string {
			for i, s := range *at(m) {
				if s == "" {
					return element(i, "empty")
				}
				if why := ok(s, p); why != "" {
					return element(i, why)
				}
			}
			return ""
		},
	}
}

// values is an array of anything.
func values[M any](name string, at func(*M) *[]jsontext.Value) field[M] {
	return field[M]{
		name: name,
		need: optional,
		list: true,
		read: func(r *reader, m *M, _ *faults) string {
			return r.array(func(int) string {
				if v, ok := r.value(); ok {
					*at(m) = append(*at(m), v.Clone())
				}
				return ""
			})
		},
		empty: func(m *M) bool { return len(*at(m)) == 0 },
		check: func(m *M, _ Profile, _ *faults) string {
			for i, v := range *at(m) {
				if !v.IsValid() {
					return element(i, "not well-formed JSON, or a name given twice")
				}
			}
			return ""
		},
	}
}

// rows is an array of rows of another table.
func rows[M, R any](name string, t *table[R], at func(*M) *[]R) field[M] {
	return field[M]{
		name: name,
		need: optional,
		list: true,
		rows: true,
		read: func(r *reader, m *M, f *faults) string {
			return r.array(func(i int) string {
				var row R
				switch err := t.decode(r, &row); {
				case r.err != nil:
				case err == nil:
					*at(m) = append(*at(m), row)
				case r.tolerant:
					r.refuse(i, t.id(&row, r.p), err)
				default:
					f.addError(&RowError{Row: i, ID: t.id(&row, r.p), Err: err})
				}
				return ""
			})
		},
		empty: func(m *M) bool { return len(*at(m)) == 0 },
		check: func(m *M, p Profile, f *faults) string {
			list := *at(m)
			for i := range list {
				if err := t.validate(&list[i], p); err != nil {
					f.addError(&RowError{Row: i, ID: t.id(&list[i], p), Err: err})
				}
			}
			return ""
		},
	}
}

func (d field[M]) as(n need) field[M] {
	d.need = n
	return d
}

func (d field[M]) alias(names ...string) field[M] {
	d.aliases = names
	return d
}

// element puts an element's index before what is wrong with it.
func element(i int, why string) string {
	if why == "" {
		return ""
	}
	return fmt.Sprintf("element %d: %s", i, why)
}
