package apps

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"
)

// ErrHost is wrapped by every error of [CanonicalHost].
var ErrHost = errors.New("not a host name")

// CanonicalHost returns the one spelling of a host name or address under which
// it is looked up: lower case, IDNA A-labels, no trailing dot; an address in
// netip's form without brackets, v4-mapped ones unmapped. It is idempotent.
func CanonicalHost(host string) (string, error) {
	if h, ok := strings.CutPrefix(host, "["); ok {
		h, ok = strings.CutSuffix(h, "]")
		a, err := netip.ParseAddr(h)
		if !ok || err != nil || !a.Is6() || a.Zone() != "" {
			return "", fmt.Errorf("%w: %q", ErrHost, host)
		}
		return a.Unmap().String(), nil
	}
	if !mayBeAddress(host) {
		// a name, as nearly always: an error of ParseAddr would cost an allocation
	} else if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return "", fmt.Errorf("%w: %q has a zone", ErrHost, host)
		}
		return a.Unmap().String(), nil
	}
	h := strings.TrimSuffix(host, ".")
	ascii := true
	for i := 0; i < len(h); i++ {
		ascii = ascii && h[i] < 0x80
	}
	if !ascii {
		var err error
		if h, err = idna.Lookup.ToASCII(h); err != nil {
			return "", fmt.Errorf("%w: %q: %w", ErrHost, host, err)
		}
	}
	h = strings.ToLower(h)
	if err := checkLabels(h); err != nil {
		return "", fmt.Errorf("%w: %q: %w", ErrHost, host, err)
	}
	return h, nil
}

func mayBeAddress(host string) bool {
	return strings.IndexByte(host, ':') >= 0 || host != "" && host[len(host)-1] <= '9'
}

// checkLabels wants letters, digits, hyphens and underscores in labels of 1 to
// 63 characters, 253 in all, the last label not a number (that would be an
// address in one of inet_aton's spellings).
func checkLabels(h string) error {
	if h == "" || len(h) > 253 {
		return errors.New("1 to 253 characters are needed")
	}
	label, digits := 0, true
	for i := 0; i < len(h); i++ {
		c := h[i]
		switch {
		case c == '.':
			if label == 0 {
				return errors.New("empty label")
			}
			label, digits = -1, true
		case c >= '0' && c <= '9':
		case c >= 'a' && c <= 'z', c == '-', c == '_':
			digits = false
		default:
			return fmt.Errorf("character %q", c)
		}
		if label++; label > 63 {
			return errors.New("label longer than 63 characters")
		}
	}
	if label == 0 {
		return errors.New("empty label")
	}
	last := h[strings.LastIndexByte(h, '.')+1:]
	if digits || strings.HasPrefix(last, "0x") {
		return errors.New("the last label is a number")
	}
	return nil
}

// stripPort takes ":port" off a host that is not a bare IPv6 address.
func stripPort(host string) string {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || strings.IndexByte(host, ':') != i && !strings.HasPrefix(host, "[") || strings.HasSuffix(host, "]") {
		return host
	}
	return host[:i]
}
