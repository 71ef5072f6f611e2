package access

import (
	"sync/atomic"
	"time"
)

// stepSize is how far wall clock and monotonic clock may part unnoticed.
const stepSize = 10 * time.Millisecond

// steady returns a clock that follows wall and never steps back: where wall
// does, it goes on as the monotonic clock has it, so that no grant, policy or
// list lives longer (R17). A step forward counts, and ends what it ends; what
// was judged by it is not taken back before the process starts anew.
func steady(wall func() time.Time) func() time.Time {
	type anchor struct {
		wall time.Time
		at   time.Duration // since began
	}
	began := time.Now()
	var base atomic.Pointer[anchor]
	base.Store(&anchor{wall: wall()})
	return func() time.Time {
		for {
			b := base.Load()
			now := wall()
			since := now.Sub(began) // of one reading of both clocks, where wall gives both
			if now == now.Round(0) {
				since = time.Since(began)
			}
			due := b.wall.Add(since - b.at)
			switch ahead := now.Round(0).Sub(due.Round(0)); {
			case ahead < -stepSize:
				return due
			case ahead <= stepSize:
				return now
			case base.CompareAndSwap(b, &anchor{now, since}):
				return now
			}
		}
	}
}
