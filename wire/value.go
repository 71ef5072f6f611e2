package wire

import (
	"crypto/rand"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// TimeLayout is the standard's time: ISO 8601, UTC, whole seconds (Q8).
const TimeLayout = "2006-01-02T15:04:05Z"

// FormatTime returns t in UTC, cut to the second.
func FormatTime(t time.Time) string { return t.UTC().Format(TimeLayout) }

// ParseTime reads a time of the standard. It takes a fraction of a second, as
// the lax profile does (Q8), but no offset other than Z.
func ParseTime(s string) (time.Time, error) {
	t, err := time.Parse(TimeLayout, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("parse time: not YYYY-MM-DDTHH:MM:SSZ")
	}
	return t, nil
}

// FormatUsage returns a usage in percent, 0 to 100, in the seven characters of
// Tables 10 and 21: 005.25%, 100.00% (Q7). Values outside are clamped; not a
// number is 0.
func FormatUsage(percent float64) string {
	if !(percent > 0) {
		percent = 0
	}
	return fmt.Sprintf("%06.2f%%", math.Min(percent, 100))
}

// ParseUsage returns the percentage of a usage; padding is not needed (Q7).
func ParseUsage(s string) (float64, error) {
	f, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !(f >= 0 && f <= 100) {
		return 0, fmt.Errorf("parse usage: not a percentage of 0 to 100")
	}
	return f, nil
}

// Coordinate is a longitude or latitude in degrees × 10^7 (Table 16, Q6).
type Coordinate int64

// CoordinateOf returns the coordinate nearest to degrees.
func CoordinateOf(degrees float64) Coordinate { return Coordinate(math.Round(degrees * 1e7)) }

// Degrees returns c in degrees.
func (c Coordinate) Degrees() float64 { return float64(c) / 1e7 }

// IDLength is the length of identifiers and tokens that we make (Q4).
const IDLength = 11

// NewID returns prefix and n, padded with zeros to 11 characters. A number that
// does not fit gives a longer text, which Validate refuses.
func NewID(prefix string, n int) string {
	return fmt.Sprintf("%s%0*d", prefix, max(IDLength-len(prefix), 1), n)
}

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// NewToken returns 11 random base62 characters, about 65 bits (Q3): an opaque
// handle, never a credential on its own. A nil random source is crypto/rand.
func NewToken(random io.Reader) (string, error) {
	if random == nil {
		random = rand.Reader
	}
	var out [IDLength]byte
	var buf [IDLength]byte
	for n := 0; n < len(out); {
		if _, err := io.ReadFull(random, buf[:]); err != nil {
			return "", fmt.Errorf("make token: %w", err)
		}
		for _, b := range buf {
			if b < 4*62 && n < len(out) { // above: biased, thrown away
				out[n] = base62[b%62]
				n++
			}
		}
	}
	return string(out[:]), nil
}
