package policy

import (
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
)

// place is the data of geo: latitude, longitude and radius, such as
// "31.23,121.47,50km". No table gives the gateway a place, so its scope stays
// closed.
type place string

var errGeo = errors.New("no place is known of any session, the scope stays closed (use ipallow)")

func parseGeo(s string) (grammar, error) {
	f := list(s)
	if len(f) != 3 || !strings.HasSuffix(f[2], "km") {
		return nil, errors.New("want latitude, longitude and radius, such as 31.23,121.47,50km")
	}
	for i, most := range []float64{90, 180, 20_040} {
		n, err := strconv.ParseFloat(strings.TrimSuffix(f[i], "km"), 64)
		if err != nil || n > most || n < -most || i == 2 && n <= 0 {
			return nil, errors.New("latitude is ±90, longitude ±180, radius up to 20040km")
		}
	}
	return place(strings.Join(f, ",")), nil
}

func (p place) String() string { return string(p) }

// bundle is the data of ref: "s3:" and the base64url of the first 27 bytes of
// an SM3 digest. No bundles are fetched yet, so its scope stays closed.
type bundle string

var errRef = errors.New("the bundle is not at hand, the scope stays closed (use inline policies)")

func parseRef(s string) (grammar, error) {
	digest, ok := strings.CutPrefix(s, "s3:")
	b, err := base64.RawURLEncoding.Strict().DecodeString(digest)
	if !ok || err != nil || len(b) != 27 {
		return nil, errors.New("want s3: and the base64url of 27 bytes")
	}
	return bundle(s), nil
}

func (b bundle) String() string { return string(b) }
