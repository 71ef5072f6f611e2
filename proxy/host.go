package proxy

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"github.com/yumen-zt/yumen/apps"
)

// Why an authority is refused: details for the log.
var (
	errHostEmpty   = errors.New("no host")
	errHostUser    = errors.New("the host holds a user")
	errHostForm    = errors.New("the host is malformed")
	errHostPort    = errors.New("the port is malformed")
	errHostAddress = errors.New("the host is an address")
	errHostDot     = errors.New("the host ends in a dot")
)

// parseAuthority returns the canonical host and the port of a Host field or an
// :authority. Stricter than a URL: no user, no address, no trailing dot, no
// character outside letters, digits, hyphens and dots.
func parseAuthority(a string) (host, port string, err error) {
	switch {
	case a == "":
		return "", "", errHostEmpty
	case strings.IndexByte(a, '@') >= 0:
		return "", "", errHostUser
	case a[0] == '[':
		return "", "", errHostAddress
	}
	host, port, has := strings.Cut(a, ":")
	if has {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || port[0] == '+' || port[0] == '0' {
			return "", "", errHostPort
		}
	}
	for i := 0; i < len(host); i++ {
		c := host[i] | 0x20
		if (c < 'a' || c > 'z') && (host[i] < '0' || host[i] > '9') && host[i] != '-' && host[i] != '.' {
			return "", "", errHostForm
		}
	}
	if host == "" {
		return "", "", errHostEmpty
	}
	if strings.HasSuffix(host, ".") {
		return "", "", errHostDot
	}
	if last := host[len(host)-1:]; last >= "0" && last <= "9" { // no name ends so, an address does
		if _, err := netip.ParseAddr(host); err == nil {
			return "", "", errHostAddress
		}
	}
	if host, err = apps.CanonicalHost(host); err != nil {
		return "", "", errHostForm
	}
	return host, port, nil
}
