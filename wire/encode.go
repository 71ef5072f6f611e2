package wire

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// sending is what we hold ourselves to: the strict profile with IPv6, canonical
// usages, addresses and hashes, and identifiers of 1 to 11 characters, since
// those of others are passed on as they came.
var sending = Profile{Strict: true, ExtendedFactors: true, sending: true}

// Encode validates m as its sender must and returns its compact JSON. It
// returns the faults as [Message.Validate] does, or [ErrTooLarge].
func Encode(m Message) ([]byte, error) {
	if err := m.Validate(sending); err != nil {
		return nil, fmt.Errorf("encode Table %d: %w", m.Table(), err)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode Table %d: %w", m.Table(), err)
	}
	if len(b) > MaxMessage {
		return nil, fmt.Errorf("encode Table %d: %w: %d bytes, at most %d", m.Table(), ErrTooLarge, len(b), MaxMessage)
	}
	return b, nil
}

// DataHash returns the dataHash of Table 3: lower-case hexadecimal SHA-256 over
// the RFC 8785 (JCS) form of the data array (M37, Q21). No data hashes as [].
// It returns an error for an element that is not well-formed JSON. Numbers
// beyond 2^53 lose their last digits in that form: send them as strings.
func DataHash(data []jsontext.Value) (string, error) {
	if data == nil {
		data = []jsontext.Value{}
	}
	b, err := json.Marshal(data)
	if err != nil {
		return "", fmt.Errorf("hash data: %w", err)
	}
	v := jsontext.Value(b)
	if err := v.Canonicalize(); err != nil {
		return "", fmt.Errorf("hash data: %w", err)
	}
	sum := sha256.Sum256(v)
	return hex.EncodeToString(sum[:]), nil
}
