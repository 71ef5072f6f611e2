package access

import (
	"strconv"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// Refusal says why Acquire gave no lease. The zero value: it did.
type Refusal struct {
	Reason   reason.Reason
	PolicyID string // the policy that refused
	Message  string // of the lock that refused
}

// Acquire asks for the right of one flow of s on app. It returns a lease, or
// nil and why not. Either way it writes the audit record, at once unless c is
// [Brief]. r must not be changed afterwards; c must be ready for Cut when
// Acquire returns.
//
//  1. register the lease in the session
//  2. load the state and decide
//  3. count: maxconn and rate
//  4. make it live, unless the monitor was faster
//  5. arm the time at which it must be looked at again
func (a *Access) Acquire(s *Session, app App, r *policy.Request, c Carrier) (*Lease, Refusal) {
	return a.acquireAt(s, app, r, c, a.cfg.Now())
}

// Enter is Attach and Acquire for one flow, by one reading of the clock.
// attached is false when the refusal is Attach's.
func (a *Access) Enter(f policy.Facts, app App, r *policy.Request, c Carrier) (l *Lease, attached bool, no Refusal) {
	now := a.cfg.Now()
	s, why := a.attachAt(f, now)
	if why != reason.OK {
		return nil, false, Refusal{Reason: why}
	}
	l, no = a.acquireAt(s, app, r, c, now)
	return l, true, no
}

func (a *Access) acquireAt(s *Session, app App, r *policy.Request, c Carrier, now time.Time) (*Lease, Refusal) {
	l := &Lease{a: a, s: s, app: app, kind: c.Kind(), req: *r, carrier: c, since: now, pos: -1, seq: a.leaseSeq.Add(1)}
	if l.kind >= kinds {
		return nil, a.refuse(l, Refusal{Reason: reason.InternalError}, now)
	}
	if s == nil {
		return nil, a.refuse(l, Refusal{Reason: reason.LoginRequired}, now)
	}
	if why := l.register(); why != reason.OK { // 1
		return nil, a.refuse(l, Refusal{Reason: why}, now)
	}
	if a.afterRegister != nil {
		a.afterRegister()
	}
	d := a.grant(l, now)                                                 // 2, 3
	if d.Reason == reason.OK && !l.state.CompareAndSwap(pending, live) { // 4
		d.Reason = l.Reason()
	}
	if d.Reason != reason.OK {
		l.leave(pending, finished)
		l.unregister()
		return nil, a.refuse(l, Refusal{d.Reason, d.PolicyID, d.Message}, now)
	}
	a.due.lower(s, dueAt(d.RecheckAt)) // 5
	s.touch(now)
	a.metrics.decided(reason.OK)
	if b, ok := c.(Brief); ok && b.Brief() {
		l.unrecorded.Store(true)
		return l, Refusal{}
	}
	l.recordDecision()
	return l, Refusal{}
}

// recordDecision writes the record of the decision for l.
func (l *Lease) recordDecision() {
	rec := l.a.record(audit.Decision, l, reason.OK, l.since)
	rec.Allowed = true
	l.a.write(rec, l, l.s)
}

// Lasts says that a flow whose carrier is [Brief] was not over at once: the
// record of its decision is written now. It may be called from any goroutine and
// more than once.
func (l *Lease) Lasts() {
	if l.unrecorded.CompareAndSwap(true, false) {
		l.recordDecision()
	}
}

// grant decides on l and counts it.
func (a *Access) grant(l *Lease, now time.Time) policy.Decision {
	st := a.state.Load()
	sub := l.s.subject.Load()
	d := a.judge(st, l.s, sub, l.app, &l.req, now)
	if d.Reason != reason.OK || !d.Limited {
		return d
	}
	lim := a.limits(st, sub, l.app)
	if lim.MaxConn >= 0 && int(l.use.active.Load()) > lim.MaxConn {
		return policy.Decision{Reason: reason.PolicyMaxConn, PolicyID: lim.MaxConnPolicy}
	}
	if id, ok := l.use.take(&lim, now); !ok {
		return policy.Decision{Reason: reason.PolicyRate, PolicyID: id}
	}
	return d
}

// limits returns the limits in force; while a list is being stored, maxconn is
// the tighter one of the two and rates are those of the next.
func (a *Access) limits(st *state, sub *policy.Subject, app App) policy.Limits {
	lim := st.snap.Limits(sub, st.apps[app.n-1])
	if st.next != nil {
		n := st.next.Limits(sub, st.nexts[app.n-1])
		if n.MaxConn < 0 || lim.MaxConn >= 0 && lim.MaxConn < n.MaxConn {
			n.MaxConn, n.MaxConnPolicy = lim.MaxConn, lim.MaxConnPolicy
		}
		return n
	}
	return lim
}

// refuse writes the records of a refusal.
func (a *Access) refuse(l *Lease, r Refusal, now time.Time) Refusal {
	a.metrics.decided(r.Reason)
	rec := a.record(audit.Decision, l, r.Reason, now)
	rec.PolicyID = r.PolicyID
	a.write(rec, l, nil)
	if l.s != nil && l.s.refusedOften(now) {
		a.raise(a.alertOf(l, alert.AccessRefused, r.Reason, now))
	}
	return r
}

// refusedOften counts a refusal and reports whether it is the tenth within a
// minute.
func (s *Session) refusedOften(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.refusedAt) >= time.Minute {
		s.refusedAt, s.refused = now, 0
	}
	s.refused++
	return s.refused == 10
}

var records = sync.Pool{New: func() any { return new(audit.Record) }}

// record begins an audit record of l.
func (a *Access) record(k audit.Kind, l *Lease, r reason.Reason, now time.Time) *audit.Record {
	rec := records.Get().(*audit.Record)
	*rec = audit.Record{
		Time: now, Kind: k, GatewayID: a.cfg.GatewayID, AppID: a.handleID(l.app), Carrier: l.kind.String(),
		Method: l.req.Method, Path: l.req.Path, Protocol: l.req.Protocol.String(), Result: r.String(), Code: r,
	}
	if l.s != nil {
		f := l.s.subject.Load().Identity()
		rec.UserID, rec.DeviceID, rec.AgentID, rec.SessionID = f.UserID, f.DeviceID, f.AgentID, l.s.id
	}
	return rec
}

// write lets the carrier of l fill rec, and writes it. s, if it is not nil,
// learns its transport.
func (a *Access) write(rec *audit.Record, l *Lease, s *Session) {
	if d, ok := l.carrier.(Describer); ok {
		d.Describe(rec)
	}
	if rec.Remote == "" && l.req.Remote.IsValid() {
		rec.Remote = l.req.Remote.String()
	}
	if s != nil {
		s.Over(rec.Protocol, rec.Suite)
	}
	a.cfg.Audit.Write(rec)
	records.Put(rec)
}

func (a *Access) auditLogin(f policy.Facts, why reason.Reason, now time.Time) {
	a.cfg.Audit.Write(&audit.Record{Time: now, Kind: audit.Login, GatewayID: a.cfg.GatewayID, UserID: f.UserID, DeviceID: f.DeviceID,
		AgentID: f.AgentID, SessionID: f.SessionID, Result: why.String(), Code: why})
}

func (a *Access) alertOf(l *Lease, c alert.Code, r reason.Reason, now time.Time) alert.Alert {
	f := l.s.Facts()
	al := alert.Alert{Code: c, Time: now, Reason: r, UserID: f.UserID, DeviceID: f.DeviceID, AppID: a.handleID(l.app), SessionID: l.s.id}
	if l.req.Remote.IsValid() {
		al.Remote = l.req.Remote.String()
	}
	return al
}

// raise raises al; alerts never come from under a lock.
func (a *Access) raise(al alert.Alert) {
	if al.Time.IsZero() {
		al.Time = a.cfg.Now()
	}
	a.cfg.Alerts.Raise(al)
}

func statusText(n int) string {
	switch n { // those of nearly all requests need no memory
	case 200:
		return "status 200"
	case 204:
		return "status 204"
	case 304:
		return "status 304"
	}
	return "status " + strconv.Itoa(n)
}
