package wire

import "fmt"

// FieldError is one field that breaks its table's rule. Its text never holds
// the field's value: "Table 12 agentId: 14 characters, at most 11".
type FieldError struct {
	Table int    // 1 to 22
	Field string // the standard's field name; a quoted, shortened one if it is unknown
	Rule  string // what is wrong, and what is right
}

func (e *FieldError) Error() string {
	return fmt.Sprintf("Table %d %s: %s", e.Table, e.Field, e.Rule)
}

// RowError is one refused row of a list. The other rows stand.
type RowError struct {
	Row int    // index in the list as it was sent, from 0
	ID  string // the row's policyId, userId or appId, if that field is sound
	Err error  // joins one [*FieldError] for each fault of the row
}

func (e *RowError) Error() string { return fmt.Sprintf("row %d: %v", e.Row, e.Err) }

// Unwrap returns the faults of the row.
func (e *RowError) Unwrap() error { return e.Err }

// OriginalRow returns the index, in the list as it was sent, of the row that
// has index good among the rows that were kept.
func OriginalRow(bad []RowError, good int) int {
	for _, b := range bad {
		if b.Row > good {
			break
		}
		good++
	}
	return good
}
