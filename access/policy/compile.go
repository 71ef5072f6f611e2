package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// compile makes the applications' runs of policies out of the lists. It reads
// rows in an order of its own, so the order of the lists has no effect.
func (b *Builder) compile() {
	s := b.s
	s.policyFaults, s.rules, s.users = nil, nil, nil
	for _, a := range s.appList { // intern first: binds may name them
		if d, ok := makeID(a.ID); ok {
			b.app(d)
		}
	}
	s.apps = slices.Clone(s.apps)
	for i := range s.apps {
		s.apps[i] = appRow{id: s.apps[i].id, name: s.apps[i].name, lock: -1}
	}
	for _, a := range s.appList {
		if d, ok := makeID(a.ID); ok {
			r := &s.apps[b.apps[d]]
			r.registered, r.level, r.refuseBrowser = true, int32(a.Level), a.RefuseBrowser
		}
	}
	groups := append(b.layer(s.policies, s.bad, false), b.layer(s.ceiling, nil, true)...)
	b.lay(groups)
	b.compileLocks()
}

// layer turns the policies of one source into groups.
func (b *Builder) layer(policies []wire.Policy, bad []BadRow, ceiling bool) []*group {
	l := &layer{ceiling: ceiling, byKey: map[groupKey]*group{}, bound: map[string]*binding{}, loose: map[string]bool{}, missing: map[string]bool{}}
	order := make([]int, len(policies))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		p, q := &policies[i], &policies[j]
		return cmp.Or(strings.Compare(p.PolicyID, q.PolicyID), strings.Compare(p.PolicyType, q.PolicyType), strings.Compare(p.PolicyData, q.PolicyData), i-j)
	})
	same := func(p, q *wire.Policy) bool { return p.PolicyType == q.PolicyType && p.PolicyData == q.PolicyData }
	twice := map[string]bool{}
	var rest []int
	for k, i := range order {
		p := &policies[i]
		if k > 0 && policies[order[k-1]].PolicyID == p.PolicyID {
			if same(&policies[order[k-1]], p) {
				continue // the same row again
			}
			twice[p.PolicyID] = true
		}
		rest = append(rest, i)
	}
	for _, i := range rest { // binds first: they give the others their scopes
		if p := &policies[i]; p.PolicyType == "bind" {
			l.bind(i, p, twice[p.PolicyID])
		} else {
			l.missing[p.PolicyID] = false
		}
	}
	l.closeMissing()
	for _, r := range bad {
		l.fault(r.Index, &wire.Policy{PolicyID: r.PolicyID}, reason.PolicyInvalid, errors.Join(errUndecoded, r.Err))
		l.close(r.PolicyID, reason.PolicyInvalid)
	}
	for _, i := range rest {
		if p := &policies[i]; p.PolicyType != "bind" {
			l.policy(i, p, twice[p.PolicyID])
		}
	}
	b.s.rules = append(b.s.rules, l.rules...)
	b.s.policyFaults = append(b.s.policyFaults, l.faults...)
	return l.groups
}

type groupKey struct {
	scope scope
	typ   Type
}

// layer collects the groups of one source of policies.
type layer struct {
	ceiling bool
	groups  []*group
	byKey   map[groupKey]*group // bound groups
	bound   map[string]*binding // by policyId
	loose   map[string]bool     // policies whose bind row cannot be taken: they apply to everything
	missing map[string]bool     // policies that a bind row names and no row holds
	rules   []*rule
	faults  []Fault
}

func (l *layer) fault(i int, p *wire.Policy, why reason.Reason, err error) {
	l.faults = append(l.faults, Fault{Ceiling: l.ceiling, Index: i, PolicyID: p.PolicyID, Type: p.PolicyType, Reason: why, Err: err})
}

// bind takes a bind row. One that cannot be read leaves the policy that it
// names applying to everything; without a name it closes everything.
func (l *layer) bind(i int, p *wire.Policy, twice bool) {
	g, err := parseData(TypeBind, p.PolicyData)
	if err != nil || twice {
		if err == nil {
			err = errPolicyTwice
		}
		l.fault(i, p, reason.PolicyInvalid, err)
		target, _, _ := strings.Cut(p.PolicyData, " ")
		if !isID(target) {
			l.close("", reason.PolicyInvalid)
			return
		}
		l.loose[target] = true
		if _, ok := l.missing[target]; !ok {
			l.missing[target] = true
		}
		return
	}
	b := g.(*binding)
	if old, ok := l.bound[b.policyID]; ok && old.String() != b.String() {
		l.fault(i, p, reason.PolicyInvalid, errBoundTwice)
		l.loose[b.policyID] = true
	}
	l.bound[b.policyID] = b
	if _, ok := l.missing[b.policyID]; !ok {
		l.missing[b.policyID] = true
	}
}

// closeMissing closes the scopes of bind rows whose policy is not in the list:
// the restriction that they stand for was lost.
func (l *layer) closeMissing() {
	var ids []string
	for policyID, gone := range l.missing {
		if gone {
			ids = append(ids, policyID)
		}
	}
	slices.Sort(ids)
	for _, policyID := range ids {
		l.fault(-1, &wire.Policy{PolicyID: policyID, PolicyType: "bind"}, reason.PolicyInvalid,
			fmt.Errorf("no row has the policyId %q that a bind row names, its scope is closed (remove the bind row, or send the policy)", policyID))
		l.close(policyID, reason.PolicyInvalid)
	}
}

// scopes returns what a policy applies to; alone says that it is unbound.
func (l *layer) scopes(policyID string) (scopes []scope, alone bool) {
	b, ok := l.bound[policyID]
	if !ok || l.loose[policyID] {
		return []scope{{}}, true
	}
	return b.scopes, false
}

// close adds a group that never holds to the scopes of a policy.
func (l *layer) close(policyID string, why reason.Reason) {
	scopes, _ := l.scopes(policyID)
	for _, sc := range scopes {
		r := &rule{id: policyID, typ: TypeClosed, ceiling: l.ceiling}
		l.groups = append(l.groups, &group{typ: TypeClosed, why: why, ceiling: l.ceiling, scope: sc, rules: []*rule{r}, alone: true})
	}
}

// policy takes a row that is no bind.
func (l *layer) policy(i int, p *wire.Policy, twice bool) {
	typ, known := ParseType(p.PolicyType)
	why := reason.PolicyUnknownType
	var spec grammar
	err := fmt.Errorf("%w (%q)", errUnknownType, p.PolicyType)
	if known {
		why = reason.PolicyInvalid
		spec, err = parseData(typ, p.PolicyData)
	}
	if twice {
		err = errPolicyTwice
	}
	if err == nil && typ == TypeGeo {
		why, err = reason.PolicyGeo, errGeo
	}
	if err == nil && typ == TypeRef {
		why, err = reason.PolicyRef, errRef
	}
	if err != nil {
		l.fault(i, p, why, err)
		l.close(p.PolicyID, why)
		return
	}
	r := &rule{id: p.PolicyID, name: p.PolicyName, typ: typ, spec: spec, ceiling: l.ceiling}
	l.rules = append(l.rules, r)
	scopes, alone := l.scopes(p.PolicyID)
	for _, sc := range scopes {
		k := groupKey{sc, typ}
		g := l.byKey[k]
		if g == nil || alone {
			g = &group{typ: typ, why: registry[typ].why, ceiling: l.ceiling, scope: sc, alone: alone}
			l.groups = append(l.groups, g)
			if !alone {
				l.byKey[k] = g
			}
		}
		g.rules = append(g.rules, r)
	}
}

func compareGroup(a, b *group) int {
	return cmp.Or(cmp.Compare(a.typ, b.typ), compareScope(a.scope, b.scope), strings.Compare(a.rules[0].id, b.rules[0].id))
}

// lay puts the groups into the runs of applications and users.
func (b *Builder) lay(groups []*group) {
	s := b.s
	slices.SortStableFunc(groups, compareGroup)
	appRuns := map[uint32]*run{}
	var all run
	number := func(appID string) uint32 {
		d, _ := makeID(appID)
		return b.apps[d]
	}
	for _, g := range groups {
		switch {
		case g.scope.user != "":
			d, _ := makeID(g.scope.user)
			if s.users == nil {
				s.users = map[id]*userRuns{}
			}
			u := s.users[d]
			if u == nil {
				u = &userRuns{apps: map[uint32]*run{}}
				s.users[d] = u
			}
			if g.scope.app == "" {
				u.all.put(g)
			} else if n := number(g.scope.app); n != 0 {
				r := u.apps[n]
				if r == nil {
					r = &run{}
					u.apps[n] = r
				}
				r.put(g)
			}
		case g.scope.app == "":
			all.put(g)
		default:
			if n := number(g.scope.app); n != 0 {
				r := appRuns[n]
				if r == nil {
					r = &run{}
					appRuns[n] = r
				}
				r.put(g)
			}
		}
	}
	all.flatten()
	for _, u := range s.users {
		u.all.flatten()
		for _, r := range u.apps {
			r.flatten()
		}
	}
	for n := range s.apps {
		a := &s.apps[n]
		own := appRuns[uint32(n)]
		if own == nil {
			a.run = all // shared by all that have no policies of their own
			continue
		}
		a.run.groups = slices.Concat(all.groups, own.groups)
		slices.SortStableFunc(a.run.groups, compareGroup)
		a.run.flatten()
		a.run.rates = slices.Concat(all.rates, own.rates)
		a.run.maxConn = tighter(all.maxConn, own.maxConn)
	}
}

// put appends g: types that are counted go to the limits, unless they permit
// nothing at all.
func (r *run) put(g *group) {
	switch g.typ {
	case TypeRate:
		best := g.rules[0]
		for _, c := range g.rules[1:] {
			if c.spec.(rate).wider(best.spec.(rate)) {
				best = c
			}
		}
		if sp := best.spec.(rate); sp.n > 0 {
			r.rates = append(r.rates, RateLimit{PolicyID: best.id, Ceiling: g.ceiling, Interval: sp.interval(), Burst: sp.n})
			return
		}
	case TypeMaxConn:
		best := g.rules[0]
		for _, c := range g.rules[1:] {
			if c.spec.(maxConn) > best.spec.(maxConn) {
				best = c
			}
		}
		if best.spec.(maxConn) > 0 {
			r.maxConn = tighter(r.maxConn, best)
			return
		}
	}
	r.groups = append(r.groups, g)
}

// tighter returns the smaller of two maxconn rules; nil is no limit.
func tighter(a, b *rule) *rule {
	if a == nil || b != nil && b.spec.(maxConn) < a.spec.(maxConn) {
		return b
	}
	return a
}

func (b *Builder) compileLocks() {
	s := b.s
	s.locks = slices.Clone(s.locks)
	slices.SortStableFunc(s.locks, func(x, y Lock) int {
		// Of two locks on one subject the one that lasts longer counts.
		return cmp.Or(strings.Compare(x.Kind, y.Kind), strings.Compare(x.ID, y.ID), compareEnd(y, x), strings.Compare(x.Message, y.Message))
	})
	t := lockTable{map[string]int32{}, map[string]int32{}, map[string]int32{}, map[string]int32{}}
	onApp := func(i int32, appID string) {
		d, _ := makeID(appID)
		if n := b.apps[d]; n != 0 && s.apps[n].lock < 0 {
			s.apps[n].lock = i
		}
	}
	put := func(m map[string]int32, k string, i int32) {
		if _, ok := m[k]; !ok {
			m[k] = i
		}
	}
	for i, l := range s.locks {
		i := int32(i)
		switch l.Kind {
		case "user":
			put(t.user, l.ID, i)
		case "device":
			put(t.device, l.ID, i)
		case "agent":
			put(t.agent, l.ID, i)
		case "session":
			put(t.session, l.ID, i)
		case "app":
			onApp(i, l.ID)
		default:
			s.policyFaults = append(s.policyFaults, Fault{Index: -1, Type: "lock", Reason: reason.Locked,
				Err: fmt.Errorf("unknown kind %q of the lock on %q, it holds for every kind (user, device, agent, app or session)", l.Kind, l.ID)})
			for _, m := range []map[string]int32{t.user, t.device, t.agent, t.session} {
				put(m, l.ID, i)
			}
			onApp(i, l.ID)
		}
	}
	s.lockedBy = t
}

func compareEnd(a, b Lock) int {
	end := func(l Lock) int64 {
		if l.Until.IsZero() {
			return never
		}
		return nanos(l.Until)
	}
	return cmp.Compare(end(a), end(b))
}
