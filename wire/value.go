package wire

import (
	"crypto/rand"
	"errors"
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
	// time.Parse would also take an hour of one digit and a comma.
	if len(s) >= len(TimeLayout) && (s[19] == 'Z' || s[19] == '.') {
		if t, err := time.Parse(TimeLayout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errors.New("parse time: not a time as YYYY-MM-DDTHH:MM:SSZ")
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
	number := strings.TrimSuffix(s, "%")
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || strings.Trim(number, "0123456789.") != "" || !(f >= 0 && f <= 100) {
		return 0, errors.New("parse usage: not a percentage of 0 to 100")
	}
	return f, nil
}

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
