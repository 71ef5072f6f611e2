package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// Steady returns a clock that no setting of the wall clock moves and that
// counts the time of sleep, so that a machine that was suspended does not look
// like a clock that jumped.
func Steady() func() time.Duration {
	start := time.Now()
	return func() time.Duration {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
			return time.Since(start)
		}
		return time.Duration(ts.Nano())
	}
}
