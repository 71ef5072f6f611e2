package policy

import (
	"math"
	"time"
)

// Instants are nanoseconds since 1970 inside the package, so that a decision
// compares integers.
const (
	unset int64 = math.MinInt64 // no such time is known
	never int64 = math.MaxInt64 // no end
)

func nanos(t time.Time) int64 {
	switch {
	case t.IsZero():
		return unset
	case t.Year() > 2260: // beyond what nanoseconds can say
		return never
	case t.Year() < 1700:
		return unset
	}
	return t.UnixNano()
}

func instant(n int64) time.Time {
	if n == never || n == unset {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// parseExpiry reads expirationDate: ISO 8601 with a zone.
func parseExpiry(s string) (int64, error) {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return unset, err
	}
	return nanos(t), nil
}
