package control

import (
	"strings"
	"testing"

	"github.com/yumen-zt/yumen/wire"
)

// A policy with a scope must never stand alone: alone it restricts everything.
func TestPolicyAndItsScopeComeAndGoTogether(t *testing.T) {
	s := newSite(t)
	p := s.gw.stream("").begun()
	id := s.id("POST", "/v1/policies", NewPolicy{Policy: wire.Policy{PolicyName: "office", PolicyType: "ipallow", PolicyData: "10.0.0.0/8"}, Scope: "alice/" + s.app})
	p.next("changed")
	l := s.gw.pull(wire.PoliciesList)
	if len(l.policies) != 2 || l.policies[0].PolicyData != id+" "+s.alice+"/"+s.app || l.policies[1].PolicyID != id {
		t.Fatalf("policies %+v", l.policies)
	}
	var list []PolicyInfo
	s.do("GET", "/v1/policies", nil, &list)
	if len(list) != 2 || list[1].Scope != s.alice+"/"+s.app || list[0].Scope != "" {
		t.Errorf("list %+v", list)
	}
	var d Done
	s.do("DELETE", "/v1/policies/"+id, nil, &d)
	if p.next("changed"); len(s.gw.pull(wire.PoliciesList).policies) != 0 {
		t.Error("the scope outlives its policy")
	}
	// Each was one change: no other event stands between.
	s.do("POST", "/v1/locks", NewLock{Kind: "session", ID: "marker"}, nil)
	if d, _ := p.delta(); len(d.Locks) != 1 {
		t.Errorf("delta %+v", d)
	}
}

func TestPolicyScopesAreChecked(t *testing.T) {
	s := newSite(t)
	for scope, want := range map[string]string{
		"APP99999999":          "app list",
		"bob/" + s.app:         "user list",
		"alice/APP99999999":    "app list",
		s.app + "," + s.app:    "", // says the same twice
		"*":                    "",
		"alice/*":              "",
		"alice/" + s.app + ",": "app list",
		"alice/" + s.app + ",USR00000001/*," + s.app: "does not fit",
	} {
		err := s.admin.Do(t.Context(), "POST", "/v1/policies", NewPolicy{Policy: wire.Policy{PolicyName: "n", PolicyType: "authage", PolicyData: "15m"}, Scope: scope}, nil)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("scope %q: %v, want %q", scope, err, want)
		}
	}
	if err := s.admin.Do(t.Context(), "POST", "/v1/policies", NewPolicy{Policy: wire.Policy{PolicyName: "n", PolicyType: "bind", PolicyData: "POL00000001 *"}, Scope: "*"}, nil); err == nil {
		t.Error("a bind row got a scope")
	}
	if l := s.s.listPolicies(); len(l) != 6 {
		t.Errorf("%d rows, want 3 policies and their scopes: %+v", len(l), l)
	}
}
