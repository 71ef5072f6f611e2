package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// atLeast is the data of posture: ">=80".
type atLeast int

func parseAtLeast(s string) (grammar, error) {
	n, err := bound(s, ">=")
	return atLeast(n), err
}

func (a atLeast) holds(s Score) bool { n, ok := s.Value(); return ok && n >= int(a) }

func (a atLeast) String() string { return ">=" + strconv.Itoa(int(a)) }

// atMost is the data of risk: "<=60".
type atMost int

func parseAtMost(s string) (grammar, error) {
	n, err := bound(s, "<=")
	return atMost(n), err
}

func (a atMost) holds(s Score) bool { n, ok := s.Value(); return ok && n <= int(a) }

func (a atMost) String() string { return "<=" + strconv.Itoa(int(a)) }

func bound(s, op string) (int, error) {
	digits, ok := strings.CutPrefix(s, op)
	if !ok {
		return 0, fmt.Errorf("want %s and a number from 0 to 100", op)
	}
	return number(strings.TrimSpace(digits), 100)
}
