package wire

import (
	"errors"
	"fmt"
	"strconv"
)

// The faults of a whole message, before its fields are looked at.
var (
	ErrTooLarge = errors.New("message too large")
	ErrTooDeep  = errors.New("message nested too deep")
)

// What a message full of faults may cost.
const (
	maxFaults    = 16   // faults that one message or row reports
	maxRowFaults = 1024 // refused rows of a list that keep their own faults
)

// errRowFaults stands for the faults of the refused rows beyond maxRowFaults.
var errRowFaults = errors.New("refused, like many rows before it")

// FieldError is one field that breaks its table's rule. Its text never holds
// the field's value: "Table 12 agentId: 14 characters, at most 11".
type FieldError struct {
	Table int    // 1 to 22
	Field string // the standard's field name; quoted and shortened if it is unknown
	Rule  string // what is wrong, and what is right
}

func (e *FieldError) Error() string {
	return fmt.Sprintf("Table %d %s: %s", e.Table, e.Field, e.Rule)
}

// SyntaxError says that a message is not one well-formed JSON object. Its text
// is fit for a peer; the parser's own words are in Unwrap.
type SyntaxError struct {
	Table int
	Rule  string
	Err   error // may be nil
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("Table %d: %s", e.Table, e.Rule) }

// Unwrap returns the parser's error.
func (e *SyntaxError) Unwrap() error { return e.Err }

// RowError is one refused row of a list. The other rows stand.
type RowError struct {
	Row int    // index in the list as it was sent, from 0
	ID  string // the row's first field (policyId, userId, appId), if that is sound
	Err error  // joins one [*FieldError] for each fault of the row
}

func (e *RowError) Error() string { return fmt.Sprintf("row %d: %v", e.Row, e.Err) }

// Unwrap returns the faults of the row.
func (e *RowError) Unwrap() error { return e.Err }

// OriginalRow returns the index, in the list as it was sent, of the row that
// has index good among the rows that were kept. Extension facts in header.ext
// count rows as they were sent.
func OriginalRow(bad []RowError, good int) int {
	for _, b := range bad {
		if b.Row > good {
			break
		}
		good++
	}
	return good
}

// faults gathers what is wrong with one message or row.
type faults struct {
	table int
	list  []error
	more  int
}

func (f *faults) add(field, rule string) {
	if rule != "" {
		f.addError(&FieldError{Table: f.table, Field: field, Rule: rule})
	}
}

func (f *faults) addError(err error) {
	if len(f.list) == maxFaults {
		f.more++
		return
	}
	f.list = append(f.list, err)
}

func (f *faults) err() error {
	if f.more > 0 {
		return errors.Join(append(f.list[:len(f.list):len(f.list)], fmt.Errorf("Table %d: %d more faults", f.table, f.more))...)
	}
	return errors.Join(f.list...)
}

// foreignName makes a field name that a peer chose fit for a log or a reply.
func foreignName(name string) string {
	if r := []rune(name); len(r) > 32 {
		name = string(r[:32]) + "..."
	}
	return strconv.QuoteToASCII(name)
}
