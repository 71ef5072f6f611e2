package ctlclient

import (
	"context"
	"math/rand/v2"
	"time"
)

// The bounds of the back-off (R20).
const (
	backoffMin = time.Second
	backoffMax = 60 * time.Second
)

// backoff grows from 1 to 60 s, each ±20 %. The zero value is ready.
type backoff struct{ last time.Duration }

// next returns the pause before the next try.
func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, backoffMin), backoffMax)
	return time.Duration(float64(b.last) * (0.8 + 0.4*rand.Float64()))
}

func (b *backoff) reset() { b.last = 0 }

// sooner returns an interval up to a tenth shorter than d, so that many
// gateways do not report in step.
func sooner(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/10+1))
}

// sleep waits for d. It reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
