package policy

import (
	"iter"
	"time"
)

// Pairs returns the user and the device of each row of s that grants something
// at now; rows of the browser device are left out. It reads every row.
func (s *Snapshot) Pairs(now time.Time) iter.Seq2[string, string] {
	return func(yield func(user, device string) bool) {
		if s.noList {
			return
		}
		n := nanos(now)
		for i := range s.rows.n {
			r := s.rows.at(i)
			if r.flags&(rowDead|rowConflict|rowBrowser) != 0 || r.pair.device == s.browser || r.expires != 0 && r.expires.nanos() <= n {
				continue
			}
			if !yield(r.pair.user.String(), r.pair.device.String()) {
				return
			}
		}
	}
}
