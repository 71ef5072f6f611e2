package policy

import (
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// question is all that one decision needs, with integers for times.
type question struct {
	now      int64
	authTime int64
	remote   bits128
	remoteOK bool
	remoteV4 bool
	method   string
	path     string
	level    int32
	factors  Factors
	posture  Score
	risk     Score
	protocol Protocol
}

// Decide answers whether sub may use app for r at now. It does not allocate
// and is safe for concurrent use. Rate and maxconn are not in it: see
// [Snapshot.Limits].
func (s *Snapshot) Decide(sub *Subject, app AppIndex, r *Request, now time.Time) Decision {
	var d Decision
	s.decide(&d, sub, app, r, now.UnixNano(), unset)
	return d
}

// DecideRotated is Decide for a subject whose token was replaced by a newer
// one of the same (user, device) and still counts until grace.
func (s *Snapshot) DecideRotated(sub *Subject, app AppIndex, r *Request, now, grace time.Time) Decision {
	var d Decision
	s.decide(&d, sub, app, r, now.UnixNano(), nanos(grace))
	return d
}

// Admit answers whether sub may be here at all, whatever it asks for.
func (s *Snapshot) Admit(sub *Subject, now time.Time) Decision {
	return s.admitDecision(sub, now.UnixNano(), unset)
}

// AdmitRotated is Admit as [Snapshot.DecideRotated] is Decide.
func (s *Snapshot) AdmitRotated(sub *Subject, now, grace time.Time) Decision {
	return s.admitDecision(sub, now.UnixNano(), nanos(grace))
}

func (s *Snapshot) admitDecision(sub *Subject, now, grace int64) (d Decision) {
	_, end, why, lock := s.admit(sub, 0, now, grace)
	if why != reason.OK {
		d.Reason = why
		if lock >= 0 {
			d.Message = s.locks[lock].Message
		}
		return d
	}
	d.RecheckAt = instant(end)
	return d
}

// Owner returns the user of the row that the subject's token opens, for
// subjects whose user is known by the token alone.
func (s *Snapshot) Owner(sub *Subject) (userID string, ok bool) {
	if sub.mac == (mac{}) {
		return "", false
	}
	_, g := s.rows.findToken(&s.byToken, &sub.mac)
	if g == nil || g.flags&(rowConflict|rowTokenBad) != 0 || g.pair.device != sub.pair.device {
		return "", false
	}
	return g.pair.user.String(), true
}

// admit finds the row of sub and when it ends.
func (s *Snapshot) admit(sub *Subject, app uint32, now, grace int64) (g *grant, end int64, why reason.Reason, lock int32) {
	if s.noList {
		return nil, 0, reason.NoList, -1
	}
	if now >= s.notAfter {
		return nil, 0, reason.ListExpired, -1
	}
	if len(s.locks) != 0 {
		if i := s.findLock(&sub.facts, app, now); i >= 0 {
			return nil, 0, reason.Locked, i
		}
	}
	end = s.notAfter
	if sub.until != unset {
		if now >= sub.until {
			return nil, 0, reason.SessionExpired, -1
		}
		end = min(end, sub.until)
	}
	g, why = s.findRow(sub, grace)
	if why != reason.OK {
		return nil, 0, why, -1
	}
	if grace != unset {
		end = min(end, grace)
	}
	end = min(end, g.expires.nanos())
	if now >= end {
		if sub.mac != (mac{}) {
			return nil, 0, reason.TokenExpired, -1
		}
		return nil, 0, reason.GrantExpired, -1
	}
	return g, end, reason.OK, -1
}

// findRow returns the row that sub may use.
func (s *Snapshot) findRow(sub *Subject, grace int64) (*grant, reason.Reason) {
	f := &sub.facts
	if sub.bad {
		if f.UserID == "" {
			return nil, reason.LoginRequired
		}
		if f.DeviceID == "" && !f.Browser {
			return nil, reason.DeviceUnknown // M9: a user without a device
		}
		return nil, reason.NoGrant
	}
	if sub.browser {
		p := pair{sub.pair.user, s.browser}
		_, g := s.rows.findPair(&s.byPair, s.key.hash(p), &p)
		if g == nil || g.flags&rowConflict != 0 {
			return nil, reason.NoGrant
		}
		return g, reason.OK
	}
	if sub.pair.device == s.browser {
		return nil, reason.DeviceMismatch // no certificate names the browser class
	}
	if sub.mac == (mac{}) || grace != unset {
		_, g := s.rows.findPair(&s.byPair, sub.hash, &sub.pair)
		if g == nil || g.flags&rowConflict != 0 {
			return nil, reason.NoGrant
		}
		return g, reason.OK
	}
	// The row is where it was for this subject the last time, most often.
	hint := sub.hint.Load()
	var g *grant
	if hint != 0 && hint <= s.rows.n {
		g = s.rows.at(hint - 1)
	}
	if g == nil || g.mac != sub.mac || g.flags&(rowDead|rowBrowser) != 0 {
		var i uint32
		if i, g = s.rows.findToken(&s.byToken, &sub.mac); g != nil {
			sub.hint.Store(i + 1)
		}
	}
	switch {
	case g == nil || g.flags&(rowConflict|rowTokenBad) != 0:
		return nil, reason.TokenUnknown
	case g.pair.device != sub.pair.device:
		return nil, reason.TokenOtherDevice
	case g.pair.user != sub.pair.user:
		return nil, reason.UserMismatch
	}
	return g, reason.OK
}

// decide puts the decision into d, which is zero.
func (s *Snapshot) decide(d *Decision, sub *Subject, app AppIndex, r *Request, now, grace int64) {
	var q question
	q.ask(r, now)
	key := memoKey(s.serial, uint32(app), &q)
	if grace == unset {
		if end, limited, ok := sub.memo.find(key, &q); ok {
			if failed := walk(s.apps[app].run.perRequest, &q, &end); failed != nil {
				*d = Decision{Reason: failed.why, PolicyID: failed.rules[0].id}
				return
			}
			d.Limited, d.RecheckAt = limited, instant(end)
			return
		}
	}
	g, end, why, lock := s.admit(sub, uint32(app), now, grace)
	if why != reason.OK {
		d.Reason = why
		if lock >= 0 {
			d.Message = s.locks[lock].Message
		}
		return
	}
	if int(app) >= len(s.apps) || !s.apps[app].registered {
		d.Reason = reason.AppUnknown
		return
	}
	a := &s.apps[app]
	if !s.inSet(g.set, uint32(app)) {
		d.Reason = reason.AppNotGranted
		return
	}
	if a.refuseBrowser && sub.browser {
		d.Reason = reason.BrowserRefused
		return
	}
	q.merge(sub, g)
	if q.level < a.level {
		d.Reason = reason.PolicyLevel
		return
	}
	failed := walk(a.run.steps, &q, &end)
	d.Limited = a.run.limited()
	again := grace == unset // may be remembered
	if len(s.users) != 0 {
		if u := s.users[sub.pair.user]; u != nil {
			failed = worse(failed, walk(u.all.steps, &q, &end))
			d.Limited = d.Limited || u.all.limited()
			again = again && len(u.all.perRequest) == 0
			if own := u.apps[uint32(app)]; own != nil {
				failed = worse(failed, walk(own.steps, &q, &end))
				d.Limited = d.Limited || own.limited()
				again = again && len(own.perRequest) == 0
			}
		}
	}
	if failed != nil {
		*d = Decision{Reason: failed.why, PolicyID: failed.rules[0].id}
		return
	}
	if again {
		sub.memo.put(key, &q, end, d.Limited)
	}
	d.RecheckAt = instant(end)
}

// ask takes the facts of the request. The remote address counts without its
// zone, and a mapped IPv4 address as what it is.
func (q *question) ask(r *Request, now int64) {
	q.now, q.protocol, q.method, q.path = now, r.Protocol, r.Method, r.Path
	if r.Remote.IsValid() {
		q.remote, q.remoteOK, q.remoteV4 = bitsOf(r.Remote), true, r.Remote.Is4() || r.Remote.Is4In6()
	}
}

// merge takes the facts of the session and of the row; where both state one,
// the narrower counts.
func (q *question) merge(sub *Subject, g *grant) {
	q.level, q.factors = int32(sub.level), sub.factors
	if sub.level == 0 || g.level != 0 && g.level < sub.level {
		q.level = int32(g.level)
	}
	switch {
	case sub.factors == 0:
		q.factors = g.factors
	case g.factors != 0:
		q.factors &= g.factors
	}
	q.authTime = sub.authTime
	if at := g.authTime.nanos(); sub.authTime == unset || at != unset && at < sub.authTime {
		q.authTime = at
	}
	q.posture, q.risk = sub.posture, sub.risk
	if sub.posture.plus1 == 0 || g.posture.plus1 != 0 && g.posture.plus1 < sub.posture.plus1 {
		q.posture = g.posture
	}
	if g.risk.plus1 > sub.risk.plus1 {
		q.risk = g.risk
	}
}

func (r *run) limited() bool { return r.maxConn != nil || len(r.rates) != 0 }

// walk returns the first of the groups that does not hold, or nil. It lowers end to
// the time at which one of them must be looked at again.
func walk(steps []step, q *question, end *int64) *group {
	for i := range steps {
		s := &steps[i]
		until, ok := int64(never), false
		if s.spec == nil {
			until, ok = s.g.holds(q)
		} else {
			switch s.typ {
			case TypeIPAllow:
				ok = q.remoteOK && s.spec.(*addrs).contains(q.remote, q.remoteV4)
			case TypeIPDeny:
				ok = q.remoteOK && !s.spec.(*addrs).contains(q.remote, q.remoteV4)
			default:
				until, ok = holds(s.typ, s.spec, q)
			}
		}
		if !ok {
			return s.g
		}
		*end = min(*end, until)
	}
	return nil
}

// worse returns the group whose denial is reported.
func worse(a, b *group) *group {
	if a == nil || b != nil && compareGroup(b, a) < 0 {
		return b
	}
	return a
}

// holds reports whether the group holds for q, and until when that is known.
func (g *group) holds(q *question) (until int64, ok bool) {
	if g.typ == TypeIPDeny { // every row denies
		if !q.remoteOK {
			return 0, false
		}
		for _, r := range g.rules {
			if r.spec.(*addrs).contains(q.remote, q.remoteV4) {
				return 0, false
			}
		}
		return never, true
	}
	for _, r := range g.rules { // one alternative must hold; the last to end counts
		if u, yes := holds(r.typ, r.spec, q); yes {
			until, ok = max(until, u), true
			if u == never {
				break
			}
		}
	}
	return until, ok
}

// holds reports whether one rule holds for q, and until when that is known.
func holds(typ Type, spec grammar, q *question) (until int64, ok bool) {
	switch typ {
	case TypeIPAllow:
		return never, q.remoteOK && spec.(*addrs).contains(q.remote, q.remoteV4)
	case TypeTLS:
		return never, spec.(protocols).holds(q.protocol)
	case TypeTime:
		return spec.(*hours).until(q.now)
	case TypeApp:
		return never, spec.(*route).holds(q.method, q.path)
	case TypePosture:
		return never, spec.(atLeast).holds(q.posture)
	case TypeRisk:
		return never, spec.(atMost).holds(q.risk)
	case TypeLevel:
		return never, spec.(level).holds(int(q.level))
	case TypeMFA:
		return never, spec.(demanded).holds(q.factors)
	case TypeAuthAge:
		return spec.(age).until(q.authTime, q.now)
	}
	return 0, false // closed, or a limit of nothing
}

// Limits returns the limits on sub and app that the caller must count. It does
// not allocate.
func (s *Snapshot) Limits(sub *Subject, app AppIndex) (l Limits) {
	l.MaxConn = -1
	if int(app) >= len(s.apps) {
		return l
	}
	a := &s.apps[app]
	most := a.run.maxConn
	l.Rates[0] = a.run.rates
	if u := s.users[sub.pair.user]; u != nil {
		most = tighter(most, u.all.maxConn)
		l.Rates[1] = u.all.rates
		if own := u.apps[uint32(app)]; own != nil {
			most = tighter(most, own.maxConn)
			l.Rates[2] = own.rates
		}
	}
	if most != nil {
		l.MaxConn, l.MaxConnPolicy = int(most.spec.(maxConn)), most.id
	}
	return l
}
