package mux

import "time"

// bucket lets burst events through at once and rate a second after that. It is
// for one goroutine.
type bucket struct {
	left float64
	last time.Time
}

func newBucket(burst int) bucket { return bucket{left: float64(burst)} }

// take reports whether one more event is within rate and burst.
func (b *bucket) take(now time.Time, rate, burst int) bool {
	if !b.last.IsZero() {
		b.left = min(float64(burst), b.left+now.Sub(b.last).Seconds()*float64(rate))
	}
	b.last = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
