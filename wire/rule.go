package wire

import (
	"fmt"
	"net/netip"
	"unicode/utf8"
)

// A rule returns what is wrong with a text that is not empty, or "".
type rule func(s string, p Profile) string

// id is the rule of identifiers and tokens: strict takes exactly 11
// characters, lax 1 to 11 (Q4).
func id(s string, p Profile) string {
	n := utf8.RuneCountInString(s)
	switch {
	case n > IDLength:
		return tooLong(n, IDLength)
	case n < IDLength && p.Strict && !p.sending:
		return fmt.Sprintf("%d characters, must be %d", n, IDLength)
	}
	return word.fault(s)
}

// upTo is the rule of a text of class c with at most most characters; 0 leaves
// the length to the message's limit.
func upTo(most int, c class) rule {
	return func(s string, p Profile) string {
		if n := utf8.RuneCountInString(s); most > 0 && n > most {
			return tooLong(n, most)
		}
		if c == digits && !p.Strict {
			return ans.fault(s)
		}
		return c.fault(s)
	}
}

func tooLong(n, most int) string { return fmt.Sprintf("%d characters, at most %d", n, most) }

// moment is the rule of times: whole seconds in UTC; lax takes a fraction (Q8).
func moment(s string, p Profile) string {
	if _, err := ParseTime(s); err != nil || p.Strict && len(s) != len(TimeLayout) {
		return "not a time as YYYY-MM-DDTHH:MM:SSZ"
	}
	return ""
}

// address is the rule of ip fields: an IPv4 or IPv6 literal without a zone;
// strict wants IPv6 in the form of RFC 5952 (Q5).
func address(s string, p Profile) string {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil || a.Zone() != "":
		return "not an IPv4 or IPv6 address"
	case p.IPv4Only && !a.Is4():
		return "not an IPv4 address, which this profile demands"
	case p.Strict && a.String() != s:
		return "an IPv6 address not in the form of RFC 5952"
	}
	return ""
}

// usage is the rule of cpuUsage, memoryUsage and diskUsage: digits and symbols,
// at most 7; we send NNN.NN% (Q7).
func usage(s string, p Profile) string {
	if p.sending {
		if f, err := ParseUsage(s); err != nil || FormatUsage(f) != s {
			return "not a usage as NNN.NN%, 000.00% to 100.00%"
		}
	}
	return usageText(s, p)
}

var usageText = upTo(7, digits)

// digest is the rule of dataHash: hexadecimal, lower case when sent.
func digest(s string, p Profile) string {
	if p.sending {
		for i, r := range s {
			if r >= 'A' && r <= 'F' {
				return fmt.Sprintf("character %d is upper case, lower case is sent", i+1)
			}
		}
	}
	return digestText(s, p)
}

var digestText = upTo(64, hexa)
