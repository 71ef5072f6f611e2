package policy

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Type is a known policyType of Table 9.
type Type uint8

// The types, in the order in which a denial is reported: what wins over
// everything first, and what the user can mend by signing in again last.
const (
	TypeIPDeny Type = iota
	TypeClosed      // no policyType: a scope that a fault has closed
	TypeTLS
	TypeIPAllow
	TypeTime
	TypeApp
	TypePosture
	TypeRisk
	TypeLevel
	TypeMFA
	TypeAuthAge
	TypeMaxConn
	TypeRate
	TypeGeo
	TypeRef
	TypeBind
)

// grammar is one row's policyData, parsed. String is its canonical form, which
// parses to the same value.
type grammar interface{ String() string }

// registry is every policyType: its name, the reason of its denials and its
// grammar.
var registry = [...]struct {
	name  string
	why   reason.Reason
	parse func(string) (grammar, error)
}{
	TypeIPDeny:  {"ipdeny", reason.PolicyIPDeny, parseAddrs},
	TypeClosed:  {"(closed)", reason.PolicyInvalid, nil},
	TypeTLS:     {"tls", reason.PolicyTLS, parseProtocols},
	TypeIPAllow: {"ipallow", reason.PolicyIPAllow, parseAddrs},
	TypeTime:    {"time", reason.PolicyTime, parseHours},
	TypeApp:     {"app", reason.PolicyApp, parseRoute},
	TypePosture: {"posture", reason.PolicyPosture, parseAtLeast},
	TypeRisk:    {"risk", reason.PolicyRisk, parseAtMost},
	TypeLevel:   {"level", reason.PolicyLevel, parseLevel},
	TypeMFA:     {"mfa", reason.PolicyMFA, parseFactors},
	TypeAuthAge: {"authage", reason.PolicyAuthAge, parseAge},
	TypeMaxConn: {"maxconn", reason.PolicyMaxConn, parseMaxConn},
	TypeRate:    {"rate", reason.PolicyRate, parseRate},
	TypeGeo:     {"geo", reason.PolicyGeo, parseGeo},
	TypeRef:     {"ref", reason.PolicyRef, parseRef},
	TypeBind:    {"bind", reason.PolicyInvalid, parseBind},
}

// String returns the policyType.
func (t Type) String() string {
	if int(t) < len(registry) {
		return registry[t].name
	}
	return "type(" + strconv.Itoa(int(t)) + ")"
}

// Types returns every policyType that lists may hold, in the order of denials.
func Types() []Type {
	var out []Type
	for t := range registry {
		if Type(t) != TypeClosed {
			out = append(out, Type(t))
		}
	}
	return out
}

// ParseType finds a type by its policyType.
func ParseType(name string) (Type, bool) {
	for t, e := range registry {
		if e.name == name && e.parse != nil {
			return Type(t), true
		}
	}
	return 0, false
}

const maxPolicyData = 1024 // bytes; the wire allows 40 characters, the ceiling more

// Check parses policyData as data of policyType and returns its canonical
// form.
func Check(policyType, data string) (string, error) {
	t, ok := ParseType(policyType)
	if !ok {
		return "", fmt.Errorf("read policyType %q: %w", policyType, errUnknownType)
	}
	g, err := parseData(t, data)
	if err != nil {
		return "", err
	}
	return g.String(), nil
}

func parseData(t Type, data string) (grammar, error) {
	if len(data) > maxPolicyData {
		return nil, fmt.Errorf("read policyData: %d bytes, at most %d", len(data), maxPolicyData)
	}
	g, err := registry[t].parse(data)
	if err != nil {
		return nil, fmt.Errorf("read policyData %q of type %s: %w", data, t, err)
	}
	return g, nil
}

// number reads a decimal number from 0 to most, without sign or leading zeros.
func number(s string, most int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || s != strconv.Itoa(n) {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	if n > most {
		return 0, fmt.Errorf("%d is more than %d", n, most)
	}
	return n, nil
}

// list splits s at commas, without blanks around the items.
func list(s string) []string {
	parts := strings.Split(s, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}
