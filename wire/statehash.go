package wire

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strconv"

	"github.com/emmansun/gmsm/sm3"
)

// Sum is a hash of a set of rows: the sum, modulo 2^128, of the hashes of the
// rows. Whoever holds one keeps it by an addition for each row that comes and a
// subtraction for each that goes, so two ends can compare 100,000 rows without
// reading them (docs/binding-v1.md §8.6). It shows that they differ by a fault;
// it is no signature, and needs none: the rows came signed. The zero Sum is that
// of no row.
type Sum struct{ hi, lo uint64 }

// Add returns the sum with the rows of o in it.
func (s Sum) Add(o Sum) Sum {
	lo, carry := bits.Add64(s.lo, o.lo, 0)
	hi, _ := bits.Add64(s.hi, o.hi, carry)
	return Sum{hi, lo}
}

// Sub returns the sum without the rows of o.
func (s Sum) Sub(o Sum) Sum {
	lo, borrow := bits.Sub64(s.lo, o.lo, 0)
	hi, _ := bits.Sub64(s.hi, o.hi, borrow)
	return Sum{hi, lo}
}

// String returns s in 32 hexadecimal digits.
func (s Sum) String() string { return fmt.Sprintf("%016x%016x", s.hi, s.lo) }

// RowSum returns the sum of the one row with this digest.
func RowSum(digest [32]byte) Sum {
	return Sum{binary.BigEndian.Uint64(digest[:8]), binary.BigEndian.Uint64(digest[8:16])}
}

// digestOf hashes fields, each behind its length in four bytes.
func digestOf(fields ...string) [32]byte {
	n := 0
	for _, f := range fields {
		n += 4 + len(f)
	}
	b := make([]byte, 0, n)
	for _, f := range fields {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return sm3.Sum(b)
}

// GrantDigest hashes a row of Table 7 and its facts, which may be nil. Values
// count as they were sent.
func GrantDigest(g *Grant, f *RowFacts) [32]byte {
	fields := make([]string, 0, 16+len(g.AppIDList))
	fields = append(fields, "grant", g.UserID, g.DeviceID, g.AuthenticationToken, g.ExpirationDate, strconv.Itoa(len(g.AppIDList)))
	fields = append(fields, g.AppIDList...)
	if f == nil {
		f = &RowFacts{}
	}
	fields = append(fields, strconv.Itoa(f.Level), strconv.Itoa(len(f.Factors)))
	for _, n := range f.Factors {
		fields = append(fields, strconv.Itoa(n))
	}
	score := func(n *int) string {
		if n == nil {
			return ""
		}
		return strconv.Itoa(*n)
	}
	return digestOf(append(fields, f.AuthTime, score(f.Posture), score(f.Risk))...)
}

// PolicyDigest hashes a row of Table 9.
func PolicyDigest(p *Policy) [32]byte {
	return digestOf("policy", p.PolicyID, p.PolicyName, p.PolicyType, p.PolicyData)
}

// LockDigest hashes a lock.
func LockDigest(l *LockRow) [32]byte { return digestOf("lock", l.Kind, l.ID, l.Message, l.Until) }

// StateHash is header.ext.stateHash of Tables 4 and 10: what a gateway has in
// force, so that its control center can tell whether the two agree.
type StateHash struct {
	Grants   VersionHash `json:"grants"`
	Policies VersionHash `json:"policies"` // with the locks
}

// VersionHash is the sum of one list at one version.
type VersionHash struct {
	Version uint64 `json:"version,string"`
	Hash    string `json:"hash"` // Sum.String
}

// Freshness is header.ext.freshness of Table 10: how old a gateway's knowledge
// of its control center's will is, by application.
type Freshness struct {
	State string            `json:"state"`          // of most applications: fresh, stale-ok, stale-strict or expired
	Apps  map[string]string `json:"apps,omitempty"` // appId → state, where it is another; at most 100
}
