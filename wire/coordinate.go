package wire

import (
	"math"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Coordinate is a longitude or latitude in degrees × 10^7 (Table 16, Q6): north
// and east are positive, as in ISO 6709.
type Coordinate int64

// The ends of the scale.
const (
	MaxLongitude Coordinate = 180e7
	MaxLatitude  Coordinate = 90e7
)

// CoordinateOf returns the coordinate nearest to degrees; not a number gives 0.
func CoordinateOf(degrees float64) Coordinate {
	if math.IsNaN(degrees) {
		return 0
	}
	return Coordinate(math.Round(max(-1e3, min(degrees, 1e3)) * 1e7))
}

// Degrees returns c in degrees.
func (c Coordinate) Degrees() float64 { return float64(c) / 1e7 }

// coordinate reads a coordinate. The field's type is float, so 1163912345 and
// 1.163912345e9 are the same. Lax also takes degrees where they cannot be meant
// otherwise: a number with a fraction, and a text with a decimal point
// (+39.9087, -116.3912345). A text without a point is degrees × 10^7.
func (r *reader) coordinate() (c Coordinate, why string) {
	const want = "a whole number of 10^-7 degrees"
	v, ok := r.value()
	if !ok {
		return 0, ""
	}
	s := string(v)
	switch kind := v.Kind(); {
	case kind == jsontext.KindString && !r.p.Strict:
		var ok bool
		if s, ok = decimalText(v); !ok {
			return 0, "a text, must be +DD.DDDD or " + want
		}
	case kind != jsontext.KindNumber:
		return 0, wrongKind(kind, want)
	}
	f, err := strconv.ParseFloat(s, 64)
	switch whole := f == math.Trunc(f); {
	case err != nil || math.Abs(f) > 1e15:
		return 0, "out of range"
	case v.Kind() == jsontext.KindString && strings.Contains(s, "."), !whole && !r.p.Strict && math.Abs(f) <= 180:
		return CoordinateOf(f), ""
	case !whole:
		return 0, "a fraction, must be " + want
	}
	return Coordinate(f), ""
}

// decimalText returns the digits of a quoted decimal with an optional sign.
func decimalText(v jsontext.Value) (string, bool) {
	s := string(v[1 : len(v)-1])
	digits := strings.TrimLeft(s, "+-")
	if len(s)-len(digits) > 1 || len(digits) > 24 {
		return "", false
	}
	before, after, point := strings.Cut(digits, ".")
	number := func(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
	return s, number(before) && (!point || number(after))
}
