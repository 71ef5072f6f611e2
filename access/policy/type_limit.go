package policy

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// rate is the data of rate: requests and flows of one user to one application
// a second, minute or hour, such as "100/s". 0/s permits nothing.
type rate struct {
	n    int
	per  time.Duration
	unit string
}

func parseRate(s string) (grammar, error) {
	count, unit, _ := strings.Cut(s, "/")
	per := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}[unit]
	if per == 0 {
		return nil, errors.New("want a number a second, minute or hour, such as 100/s")
	}
	n, err := number(count, 1_000_000)
	return rate{n, per, unit}, err
}

// interval is the time that one request costs.
func (r rate) interval() time.Duration { return r.per / time.Duration(max(r.n, 1)) }

// wider reports whether r permits more than o: more a second in the long run,
// or as much with a larger burst.
func (r rate) wider(o rate) bool {
	a, b := int64(r.n)*int64(o.per), int64(o.n)*int64(r.per)
	return a > b || a == b && r.n > o.n
}

func (r rate) String() string { return strconv.Itoa(r.n) + "/" + r.unit }

// maxConn is the data of maxconn: the most leases of one user on one
// application at a time.
type maxConn int

func parseMaxConn(s string) (grammar, error) {
	n, err := number(s, 1_000_000)
	return maxConn(n), err
}

func (m maxConn) String() string { return strconv.Itoa(int(m)) }

// RateLimit is a rate that applies, in the form of the generic cell rate
// algorithm.
type RateLimit struct {
	PolicyID string
	Ceiling  bool
	Interval time.Duration // that one request costs
	Burst    int           // requests at once
}

// Limits are the limits on one user and application that the caller counts.
type Limits struct {
	MaxConn       int // at most so many leases at once; -1: no limit
	MaxConnPolicy string
	Rates         [3][]RateLimit // every one must hold; slices of the snapshot, read-only
}
