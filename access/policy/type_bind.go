package policy

import (
	"fmt"
	"slices"
	"strings"
)

// binding is the data of bind: a policy and its scopes, such as
// "POL00000007 APP00000001" or "POL00000007 USR00000001/APP00000001". A scope
// is an application, user/application with * for any, or * for everything;
// several are separated by commas.
type binding struct {
	policyID string
	scopes   []scope // ascending
}

// scope is what a policy applies to; an empty part is any.
type scope struct{ user, app string }

func (s scope) String() string {
	switch {
	case s == scope{}:
		return "*"
	case s.user == "":
		return s.app
	case s.app == "":
		return s.user + "/*"
	}
	return s.user + "/" + s.app
}

func compareScope(a, b scope) int {
	if c := strings.Compare(a.user, b.user); c != 0 {
		return c
	}
	return strings.Compare(a.app, b.app)
}

func parseBind(s string) (grammar, error) {
	f := strings.Fields(s)
	if len(f) != 2 {
		return nil, fmt.Errorf("want a policyId and its scopes, such as POL00000007 APP00000001")
	}
	if !isID(f[0]) {
		return nil, fmt.Errorf("%q is no policyId", f[0])
	}
	b := &binding{policyID: f[0]}
	for _, item := range list(f[1]) {
		user, app, both := strings.Cut(item, "/")
		if !both {
			user, app = "*", item
		}
		var sc scope
		for _, part := range []struct {
			text string
			to   *string
		}{{user, &sc.user}, {app, &sc.app}} {
			if part.text == "*" {
				continue
			}
			if !isID(part.text) {
				return nil, fmt.Errorf("%q is no scope", item)
			}
			*part.to = part.text
		}
		b.scopes = append(b.scopes, sc)
	}
	slices.SortFunc(b.scopes, compareScope)
	b.scopes = slices.Compact(b.scopes)
	return b, nil
}

func isID(s string) bool {
	_, ok := makeID(s)
	return ok && !strings.ContainsAny(s, "*/,")
}

func (b *binding) String() string {
	parts := make([]string, len(b.scopes))
	for i, s := range b.scopes {
		parts[i] = s.String()
	}
	return b.policyID + " " + strings.Join(parts, ",")
}
