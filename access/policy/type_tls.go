package policy

import (
	"fmt"
	"strings"
)

// protocols is the data of tls: the protocols that may be used, such as "tlcp"
// or "tlcp,tls1.3".
type protocols uint8

func parseProtocols(s string) (grammar, error) {
	var set protocols
	for _, item := range list(s) {
		p := ParseProtocol(item)
		if p == Unknown {
			return nil, fmt.Errorf("%q is none of tlcp, tls1.2 and tls1.3", item)
		}
		set |= 1 << p
	}
	return set, nil
}

func (s protocols) holds(p Protocol) bool { return p != Unknown && s&(1<<p) != 0 }

func (s protocols) String() string {
	var parts []string
	for p := TLCP; p >= TLS12; p-- {
		if s.holds(p) {
			parts = append(parts, p.String())
		}
	}
	return strings.Join(parts, ",")
}
