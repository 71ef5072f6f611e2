package failed

import (
	"strings"
	"sync"
	"time"
)

// Describe is err with what the client had offered, short and printable
// whatever the client put into its certificates.
func Describe(err error, offered string) string {
	const most = 300
	s := err.Error()
	if len(s) > most {
		s = s[:most] + "..."
	}
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(s, "?"))
	if offered != "" {
		s += "; " + offered
	}
	return s
}

// So many are told apart a minute, in log and audit; the others are counted.
const (
	toldMost = 600
	toldSpan = time.Minute
)

// Bucket bounds what is told. The zero Bucket is full; it is safe for concurrent
// use.
type Bucket struct {
	mu     sync.Mutex
	used   float64   // guarded by mu
	at     time.Time // of used; guarded by mu
	missed int       // since the last that was allowed; guarded by mu
}

// Allow reports whether the next may be told, and how many before it were not.
func (q *Bucket) Allow(now time.Time) (ok bool, missed int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.at.IsZero() {
		q.used = max(0, q.used-toldMost*max(0, now.Sub(q.at).Seconds())/toldSpan.Seconds()) // a clock may be set back
	}
	q.at = now
	if q.used+1 > toldMost {
		q.missed++
		return false, 0
	}
	q.used++
	missed, q.missed = q.missed, 0
	return true, missed
}
