package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Trace explains one decision: what it was, and every step with its outcome.
// Steps behind the one that denied are shown, too, as far as they can be
// evaluated.
type Trace struct {
	Decision Decision `json:"decision"`
	AppID    string   `json:"app_id"`
	Grant    string   `json:"grant,omitzero"` // user, device and end of the row
	Steps    []Step   `json:"steps"`
	Limits   Limits   `json:"-"`
}

// Step is one thing that had to hold.
type Step struct {
	Name     string   `json:"name"`  // list, lock, grant, app, appIdList, browser, level, policy
	Layer    string   `json:"layer"` // of a policy: list or ceiling
	Scope    string   `json:"scope,omitzero"`
	Type     string   `json:"type,omitzero"`     // policyType
	Policies []string `json:"policies,omitzero"` // alternatives: policyId and data
	Pass     bool     `json:"pass"`
	Counted  bool     `json:"counted,omitzero"` // rate and maxconn: counted at the gateway
	Detail   string   `json:"detail,omitzero"`
	Reason   string   `json:"reason,omitzero"`
}

// Explain says how the decision on f, appID and r at now comes about.
func (s *Snapshot) Explain(f Facts, appID string, r Request, now time.Time) Trace {
	sub, app, at := s.key.Subject(f), s.App(appID), now.UnixNano()
	t := Trace{Decision: s.Decide(sub, app, &r, now), AppID: appID, Limits: s.Limits(sub, app)}
	g, _, why, lock := s.admit(sub, uint32(app), at, unset)
	t.step("list", !s.noList && at < s.notAfter, fmt.Sprintf("version %d, policies %d, until %s", s.version, s.policyVersion, endText(s.notAfter)), why)
	if lock >= 0 {
		l := s.locks[lock]
		t.step("lock", false, fmt.Sprintf("on %s %s: %s", l.Kind, l.ID, l.Message), why)
	} else {
		t.step("lock", true, "none in force", reason.OK)
	}
	if g == nil && lock >= 0 { // show what would hold without the lock
		g, _ = s.findRow(sub, unset)
	}
	switch {
	case g == nil:
		t.step("grant", false, fmt.Sprintf("no row for user %q on device %q", f.UserID, cmpDevice(f, s)), why)
		return t
	case at >= g.expires.nanos():
		t.step("grant", false, "ended "+endText(g.expires.nanos()), why)
	default:
		t.step("grant", true, "until "+endText(g.expires.nanos()), reason.OK)
	}
	t.Grant = fmt.Sprintf("user %s, device %s, until %s, %d applications", g.pair.user, g.pair.device, endText(g.expires.nanos()), len(s.set(g.set)))
	a := &s.apps[app]
	t.step("app", a.registered, "registered at this gateway", reason.AppUnknown)
	t.step("appIdList", s.inSet(g.set, uint32(app)), "names the application", reason.AppNotGranted)
	t.step("browser", !(a.refuseBrowser && f.Browser), fmt.Sprintf("browser class refused: %v", a.refuseBrowser), reason.BrowserRefused)
	var q question
	q.ask(&r, at)
	q.merge(sub, g)
	t.step("level", q.level >= a.level, fmt.Sprintf("%d of at least %d", q.level, a.level), reason.PolicyLevel)
	runs := []*run{&a.run}
	if u := s.users[sub.pair.user]; u != nil {
		runs = append(runs, &u.all)
		if own := u.apps[uint32(app)]; own != nil {
			runs = append(runs, own)
		}
	}
	var groups []*group
	for _, r := range runs {
		groups = append(groups, r.groups...)
	}
	slices.SortStableFunc(groups, compareGroup)
	for _, g := range groups {
		t.policy(g, &q)
	}
	for _, r := range runs {
		t.limits(r)
	}
	return t
}

func cmpDevice(f Facts, s *Snapshot) string {
	if f.Browser {
		return s.browserName
	}
	return f.DeviceID
}

func endText(n int64) string {
	switch n {
	case never:
		return "no end"
	case unset:
		return "never"
	}
	return instant(n).Format(time.RFC3339)
}

func (t *Trace) step(name string, pass bool, detail string, why reason.Reason) {
	st := Step{Name: name, Pass: pass, Detail: detail}
	if !pass {
		st.Reason = why.String()
	}
	t.Steps = append(t.Steps, st)
}

func layerName(ceiling bool) string {
	if ceiling {
		return "ceiling"
	}
	return "list"
}

func (t *Trace) policy(g *group, q *question) {
	until, ok := g.holds(q)
	st := Step{Name: "policy", Layer: layerName(g.ceiling), Scope: g.scope.String(), Type: g.typ.String(), Pass: ok}
	if g.alone {
		st.Scope += " (unbound)"
	}
	for _, r := range g.rules {
		text := r.id
		if r.spec != nil {
			text += " " + r.spec.String()
		}
		st.Policies = append(st.Policies, strings.TrimSpace(text))
	}
	if !ok {
		st.Reason = g.why.String()
	} else if until != never {
		st.Detail = "until " + endText(until)
	}
	t.Steps = append(t.Steps, st)
}

func (t *Trace) limits(r *run) {
	if r.maxConn != nil {
		t.Steps = append(t.Steps, Step{Name: "policy", Layer: layerName(r.maxConn.ceiling), Type: "maxconn",
			Policies: []string{r.maxConn.id + " " + r.maxConn.spec.String()}, Pass: true, Counted: true})
	}
	for _, l := range r.rates {
		t.Steps = append(t.Steps, Step{Name: "policy", Layer: layerName(l.Ceiling), Type: "rate",
			Policies: []string{l.PolicyID}, Pass: true, Counted: true,
			Detail: fmt.Sprintf("one each %s, at most %d at once", l.Interval, l.Burst)})
	}
}

// String returns the trace as text, a line a step.
func (t Trace) String() string {
	var b strings.Builder
	d := t.Decision
	fmt.Fprintf(&b, "%s %s", d.Reason.Code(), d.Reason)
	if d.PolicyID != "" {
		fmt.Fprintf(&b, " by policy %s", d.PolicyID)
	}
	if !d.RecheckAt.IsZero() {
		fmt.Fprintf(&b, ", to be looked at again at %s", d.RecheckAt.Format(time.RFC3339))
	}
	b.WriteByte('\n')
	for _, st := range t.Steps {
		mark := "pass"
		switch {
		case !st.Pass:
			mark = "FAIL"
		case st.Counted:
			mark = "count"
		}
		fmt.Fprintf(&b, "  %-5s %s", mark, st.Name)
		for _, part := range []string{st.Layer, st.Type, strings.Join(st.Policies, " or "), st.Detail, st.Reason} {
			if part != "" {
				b.WriteString("  " + part)
			}
		}
		if st.Scope != "" {
			b.WriteString("  in scope " + st.Scope)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
