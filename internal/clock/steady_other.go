//go:build !linux

package clock

import "time"

// Steady returns a clock that no setting of the wall clock moves. Here it may
// stand still while the machine sleeps: a wake-up is then reported as a jump.
func Steady() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}
