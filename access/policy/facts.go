package policy

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// Protocol is the transport protocol of a session. The zero value is unknown
// and fails every tls policy.
type Protocol uint8

// The protocols.
const (
	Unknown Protocol = iota
	TLS12
	TLS13
	TLCP
)

var protocolNames = [...]string{Unknown: "unknown", TLS12: "tls1.2", TLS13: "tls1.3", TLCP: "tlcp"}

// String returns the name that tls policies use, such as "tlcp".
func (p Protocol) String() string {
	if int(p) < len(protocolNames) {
		return protocolNames[p]
	}
	return protocolNames[Unknown]
}

// ParseProtocol is the inverse of String. It returns Unknown for other names.
func ParseProtocol(s string) Protocol {
	for p := TLS12; p <= TLCP; p++ {
		if protocolNames[p] == s {
			return p
		}
	}
	return Unknown
}

// Score is a value from 0 to 100 that may be absent. The zero value is absent
// and fails every policy that asks for it.
type Score struct{ plus1 uint8 }

// ScoreOf returns the score n, or the absent score when n is not 0 to 100.
func ScoreOf(n int) Score {
	if n < 0 || n > 100 {
		return Score{}
	}
	return Score{uint8(n) + 1}
}

// Value returns the score, and false when it is absent.
func (s Score) Value() (int, bool) { return int(s.plus1) - 1, s.plus1 != 0 }

// String returns the number, or "absent".
func (s Score) String() string {
	if n, ok := s.Value(); ok {
		return strconv.Itoa(n)
	}
	return "absent"
}

// Factors is a set of authenticationType values of Table 17, 1 to 15.
type Factors uint16

// FactorsOf returns the set of types. Types outside 1 to 15 are left out.
func FactorsOf(types ...int) Factors {
	var f Factors
	for _, t := range types {
		if t >= 1 && t <= 15 {
			f |= 1 << t
		}
	}
	return f
}

// Has reports whether every type of want is in f.
func (f Factors) Has(want Factors) bool { return f&want == want }

// Types returns the types in ascending order.
func (f Factors) Types() []int {
	var out []int
	for n := uint16(f); n != 0; n &= n - 1 {
		out = append(out, bits.TrailingZeros16(n))
	}
	return out
}

// String returns the types separated by commas.
func (f Factors) String() string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(f.Types()), " ", ","), "[]")
}
