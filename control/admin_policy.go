package control

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/control/store"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/wire"
)

// PolicyInfo is a row of Table 9 with the scope that its bind row gives it.
type PolicyInfo struct {
	wire.Policy
	Scope string `json:"scope,omitempty"` // empty: everything, or the row is a bind row itself
}

const typeBind = "bind"

// boundBy returns the bind rows of the policy id; there should be one at most.
func boundBy(st *model.State, id string) (rows []*wire.Policy) {
	for _, p := range st.Policies {
		if named, _, ok := strings.Cut(p.PolicyData, " "); ok && p.PolicyType == typeBind && named == id {
			rows = append(rows, p)
		}
	}
	slices.SortFunc(rows, func(a, b *wire.Policy) int { return cmp.Compare(a.PolicyID, b.PolicyID) })
	return rows
}

func (s *Server) listPolicies() []PolicyInfo {
	out := []PolicyInfo{}
	s.view(func(st *model.State) {
		scopes := map[string]string{}
		for _, p := range st.Policies {
			if id, scope, ok := strings.Cut(p.PolicyData, " "); ok && p.PolicyType == typeBind {
				scopes[id] = scope
			}
		}
		for _, p := range st.Policies {
			out = append(out, PolicyInfo{*p, scopes[p.PolicyID]})
		}
	})
	slices.SortFunc(out, func(a, b PolicyInfo) int { return cmp.Compare(a.PolicyID, b.PolicyID) })
	return out
}

// NewPolicy is the request to add a policy. With a scope, the policy and its
// bind row come into force at the same moment.
type NewPolicy struct {
	wire.Policy
	Scope string `json:"scope,omitempty"` // APP, USER/APP, USER/* or *, commas between; users by name, too
}

func (s *Server) addPolicy(r *http.Request) (any, error) {
	var in NewPolicy
	if err := adminsock.Read(r, &in); err != nil {
		return nil, err
	}
	canonical, err := policy.Check(in.PolicyType, in.PolicyData)
	if err != nil {
		var names []string
		for _, t := range policy.Types() {
			names = append(names, t.String())
		}
		return nil, fmt.Errorf("%w (types: %s)", err, strings.Join(names, " "))
	}
	if canonical != "" {
		in.PolicyData = canonical
	}
	second := ""
	if in.Scope != "" {
		second = "BND"
	}
	if second != "" && in.PolicyType == typeBind {
		return nil, errors.New("scope: a bind row is a scope itself")
	}
	id, rev, err := s.createWith("POL", in.PolicyID, second, func(st *model.State, id, bindID string) ([]entry, error) {
		row := in.Policy
		row.PolicyID = id
		if err := row.Validate(wire.Lax); err != nil || bindID == "" {
			return []entry{{model.KeyPolicy + id, &row}}, err
		}
		bind, err := bindRow(st, bindID, &row, in.Scope)
		return []entry{{model.KeyPolicy + id, &row}, {model.KeyPolicy + bindID, bind}}, err
	})
	return Done{id, rev}, err
}

// bindRow returns the row that limits p to scope. Users may stand there by
// name; who and what it names must exist: a restriction of nothing is a
// mistake.
func bindRow(st *model.State, id string, p *wire.Policy, scope string) (*wire.Policy, error) {
	var items []string
	for item := range strings.SplitSeq(scope, ",") {
		user, app, both := strings.Cut(strings.TrimSpace(item), "/")
		if !both {
			user, app = "*", user
		}
		if user != "*" {
			var err error
			if user, err = userID(st, user); err != nil {
				return nil, fmt.Errorf("scope %q: %w", item, err)
			}
		}
		if app != "*" && st.Apps[app] == nil {
			return nil, fmt.Errorf("scope %q: %w", item, notFoundError(fmt.Sprintf("no application %q (yumen control app list shows them)", app)))
		}
		if user != "*" {
			app = user + "/" + app
		}
		items = append(items, app)
	}
	data, err := policy.Check(typeBind, p.PolicyID+" "+strings.Join(items, ","))
	if err != nil {
		return nil, fmt.Errorf("scope %q: %w (add the policy once for each scope that does not fit)", scope, err)
	}
	row := &wire.Policy{PolicyID: id, PolicyName: p.PolicyName, PolicyType: typeBind, PolicyData: data}
	if err := row.Validate(wire.Lax); err != nil {
		return nil, fmt.Errorf("scope %q: %w (add the policy once for each scope that does not fit)", scope, err)
	}
	return row, nil
}

// removePolicy removes a policy with its bind rows: one alone would close its
// scope.
func (s *Server) removePolicy(r *http.Request) (any, error) {
	id := r.PathValue("id")
	rev, err := s.remove(model.KeyPolicy+id, notFoundError(fmt.Sprintf("no policy %q (yumen control policy list shows them)", id)), func(st *model.State) (ops []store.Op) {
		for _, b := range boundBy(st, id) {
			ops = append(ops, store.Delete(model.KeyPolicy+b.PolicyID))
		}
		return ops
	})
	return Done{id, rev}, err
}
