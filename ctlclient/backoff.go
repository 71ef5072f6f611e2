package ctlclient

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// The bounds of the back-off (R20).
const (
	backoffMin     = time.Second
	backoffMax     = 60 * time.Second
	backoffRefused = 15 * time.Second // the host is there, the control center restarts
)

// backoff grows from 1 to 60 s, each ±20 %. The zero value is ready.
type backoff struct{ last time.Duration }

// next returns the pause before the next try, after err. Who refuses
// connections does so at little cost and will be back soon.
func (b *backoff) next(err error) time.Duration {
	most := backoffMax
	if errors.Is(err, errRefused) {
		most = backoffRefused
	}
	b.last = min(max(2*b.last, backoffMin), most)
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
