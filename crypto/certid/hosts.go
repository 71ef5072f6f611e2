package certid

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// SplitHosts sorts hosts into DNS names and IP addresses for a certificate.
// Names are ASCII (IDNA names in their xn-- form), lower-cased, and may begin
// with "*."; an address with a zone is refused.
func SplitHosts(hosts []string) (names []string, ips []net.IP, err error) {
	var faults []error
	for _, h := range hosts {
		if a, err := netip.ParseAddr(h); err == nil {
			if a.Zone() != "" {
				faults = append(faults, fmt.Errorf("check host %q: an address of a certificate has no zone", h))
				continue
			}
			ips = append(ips, net.IP(a.Unmap().AsSlice()))
			continue
		}
		if !validName(h) {
			faults = append(faults, fmt.Errorf("check host %q: neither a DNS name nor an IP address", h))
			continue
		}
		names = append(names, strings.ToLower(h))
	}
	return names, ips, errors.Join(faults...)
}

// validName reports whether s is a host name by RFC 1123, the first label of
// which may be an asterisk.
func validName(s string) bool {
	s = strings.TrimPrefix(s, "*.")
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}
