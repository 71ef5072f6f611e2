package policy

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// age is the data of authage: the longest time since the sign-in, a number of
// s, m, h or d, such as "15m".
type age struct {
	most time.Duration
	text string
}

// authSkew is how far a sign-in may lie in the future of our clock.
const authSkew = int64(time.Minute)

func parseAge(s string) (grammar, error) {
	units := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour}
	if s == "" || units[s[len(s)-1]] == 0 {
		return nil, errors.New("want a number of s, m, h or d")
	}
	n, err := number(s[:len(s)-1], 10_000_000)
	if err != nil {
		return nil, err
	}
	a := age{time.Duration(n) * units[s[len(s)-1]], s}
	if a.most <= 0 || a.most > 10*365*24*time.Hour {
		return nil, errors.New("want more than 0 and at most ten years")
	}
	return a, nil
}

// until returns when a sign-in at auth becomes too old, and false when it is.
func (a age) until(auth, now int64) (int64, bool) {
	if auth == unset || auth > now+authSkew {
		return 0, false
	}
	end := auth + int64(a.most)
	return end, now < end
}

func (a age) String() string { return a.text }

// demanded is the data of mfa: authenticationType values of Table 17 that must
// all have been used, such as "4,5".
type demanded Factors

func parseFactors(s string) (grammar, error) {
	var f Factors
	for _, item := range list(s) {
		n, err := number(item, 15)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%q is no authenticationType", item)
		}
		f |= FactorsOf(n)
	}
	return demanded(f), nil
}

func (d demanded) holds(f Factors) bool { return f.Has(Factors(d)) }

func (d demanded) String() string { return Factors(d).String() }

// level is the data of level: the lowest sign-in level, "2" or ">=2".
type level int

func parseLevel(s string) (grammar, error) {
	n, err := number(strings.TrimSpace(strings.TrimPrefix(s, ">=")), 1000)
	if err == nil && n == 0 {
		err = errors.New("want 1 or more")
	}
	return level(n), err
}

func (l level) holds(n int) bool { return n >= int(l) }

func (l level) String() string { return ">=" + strconv.Itoa(int(l)) }
