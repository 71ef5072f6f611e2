package access

import (
	"math/rand/v2"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// Attach returns the live session f.SessionID, made when there is none.
//
// A session with a token is admitted by the list: the token must be one of its
// device (S1), and wrong tokens are counted per device (S3); with an empty
// UserID the row's user is taken. A session without a token is admitted unless
// it is revoked; what it may reach is Acquire's matter.
//
// Facts of a later sign-in (AuthTime) replace those of the live session, and
// its leases are looked at again. A later call with other identities is
// refused.
func (a *Access) Attach(f policy.Facts) (*Session, reason.Reason) {
	return a.attachAt(f, a.cfg.Now())
}

func (a *Access) attachAt(f policy.Facts, now time.Time) (*Session, reason.Reason) {
	s, why := a.attach(f, now)
	if why != reason.OK {
		a.metrics.refusedSessions.Add(1)
		a.auditLogin(f, why, now)
		return nil, why
	}
	s.touch(now)
	return s, reason.OK
}

func (a *Access) attach(f policy.Facts, now time.Time) (*Session, reason.Reason) {
	if f.SessionID == "" {
		return nil, reason.SessionUnknown
	}
	if a.closed.Load() {
		return nil, reason.Shutdown
	}
	for {
		if s := a.sessions.get(f.SessionID); s != nil {
			if s.live() {
				return a.attachAgain(s, f, now)
			}
			a.sessions.remove(s) // ended; whether its id may come back is seen below
		}
		s, other, why := a.attachNew(f, now)
		if other == nil {
			return s, why
		}
	}
}

// attachNew makes the session of f. It returns other when somebody else was
// faster.
func (a *Access) attachNew(f policy.Facts, now time.Time) (s, other *Session, why reason.Reason) {
	sub, why := a.identify(f, now)
	if why != reason.OK {
		return nil, nil, why
	}
	if int(a.sessions.n.Load()) >= a.cfg.MaxSessions && !a.evictOne(now) {
		return nil, nil, reason.SessionLimit
	}
	s = &Session{id: f.SessionID, since: now, renewed: now, done: make(chan struct{}), pos: -1}
	s.subject.Store(sub)
	s.touch(now)
	s.dueAt.Store(noDue)
	if other := a.sessions.put(s); other != s {
		return nil, other, reason.OK
	}
	// Inserted first, looked for revocations and changes of the list second: a
	// revocation that the next line misses walks the table and finds s there.
	if why := a.revoked.check(s.id, sub.Facts().UserID, s.issued()); why != reason.OK {
		a.end(s, why, now)
		return nil, nil, why
	}
	a.visit(s, a.state.Load(), now, now, nil)
	if why := s.Reason(); why != reason.OK {
		return nil, nil, why
	}
	return s, nil, reason.OK
}

// identify checks f against revocations and, with a token, against the list.
func (a *Access) identify(f policy.Facts, now time.Time) (*policy.Subject, reason.Reason) {
	if why := a.revoked.check(f.SessionID, f.UserID, issued(f, now)); why != reason.OK {
		return nil, why
	}
	sub := a.cfg.TokenKey.Subject(f)
	if sub.Facts().Token == "" {
		return sub, reason.OK
	}
	if !a.guesses.mayTry(f.DeviceID, now) {
		return nil, reason.TokenGuessLimit
	}
	st := a.state.Load()
	if f.UserID == "" {
		if user, ok := st.snap.Owner(sub); ok {
			f.UserID = user
			sub = a.cfg.TokenKey.Subject(f)
		}
	}
	d := a.admit(st, sub, now)
	if f.UserID == "" && d.Reason == reason.LoginRequired {
		d.Reason = reason.TokenUnknown
	}
	switch d.Reason {
	case reason.TokenUnknown, reason.TokenOtherDevice, reason.UserMismatch:
		a.misused(f, d.Reason, st, now)
	}
	return sub, d.Reason
}

// misused counts and reports a wrong token.
func (a *Access) misused(f policy.Facts, why reason.Reason, st *state, now time.Time) {
	if st.next == nil && a.guesses.miss(f.DeviceID, now) {
		a.raise(alert.Alert{Code: alert.TokenGuessing, Time: now, Reason: reason.TokenGuessLimit, UserID: f.UserID, DeviceID: f.DeviceID, SessionID: f.SessionID})
	}
	if why != reason.TokenUnknown {
		a.raise(alert.Alert{Code: alert.TokenMisuse, Time: now, Reason: why, UserID: f.UserID, DeviceID: f.DeviceID, SessionID: f.SessionID})
	}
}

// attachAgain returns the live session s for f.
func (a *Access) attachAgain(s *Session, f policy.Facts, now time.Time) (*Session, reason.Reason) {
	was := s.Facts()
	if f == was {
		return s, reason.OK
	}
	switch {
	case f.UserID != was.UserID && (f.UserID != "" || f.Token == ""):
		return nil, reason.UserMismatch
	case f.DeviceID != was.DeviceID || f.Browser != was.Browser:
		return nil, reason.DeviceMismatch
	case f.AgentID != was.AgentID:
		return nil, reason.AgentMismatch
	}
	f.UserID = was.UserID
	if f.Browser {
		f.Token = ""
	}
	if f.Token == was.Token && !f.AuthTime.After(was.AuthTime) {
		return s, reason.OK // an older cookie of the same session
	}
	sub, why := a.identify(f, now)
	if why != reason.OK {
		return nil, why
	}
	s.subject.Store(sub)
	a.visit(s, a.state.Load(), now, now, nil)
	return s, s.Reason()
}

// Renew is Table 14 (§8.3.2): the agent of s proves itself again. at is the
// message's updateTime: a newer one wins, an older one is ignored (M80). A new
// token must be one of the same user and device. Without renewal the session
// ends when its token does, or after Config.RenewWithin (M82).
func (a *Access) Renew(s *Session, token string, at time.Time) reason.Reason {
	now := a.cfg.Now()
	if s == nil {
		return reason.SessionUnknown
	}
	if at.After(now.Add(5 * time.Minute)) {
		return reason.MessageSkew // it would make every later one look older
	}
	s.mu.Lock()
	ended, why, newest := s.ended, s.why, s.updated
	s.mu.Unlock()
	if ended {
		return why
	}
	if !at.After(newest) {
		return reason.OK
	}
	f := s.Facts()
	if token != f.Token {
		f.Token = token
		if token == "" || f.Browser {
			return reason.TokenUnknown
		}
		sub, why := a.identify(f, now)
		if why != reason.OK {
			a.auditLogin(f, why, now)
			return why
		}
		s.mu.Lock()
		if !at.After(s.updated) { // another one was faster
			s.mu.Unlock()
			return reason.OK
		}
		s.subject.Store(sub)
		s.updated, s.renewed = at, now
		s.mu.Unlock()
	} else {
		s.mu.Lock()
		if at.After(s.updated) {
			s.updated, s.renewed = at, now
		}
		s.mu.Unlock()
	}
	s.touch(now)
	a.visit(s, a.state.Load(), now, now, nil)
	return s.Reason()
}

// End is a log-out or a revocation: it ends s, cuts all its leases for r, and
// remembers its id so that a cookie of it opens nothing any more. It returns
// how many leases were cut.
func (a *Access) End(s *Session, r reason.Reason) int {
	now := a.cfg.Now()
	a.revoked.addSession(s.id, now)
	n := a.end(s, r, now)
	f := s.Facts()
	a.cfg.Audit.Write(&audit.Record{Time: now, Kind: audit.Logout, GatewayID: a.cfg.GatewayID, UserID: f.UserID, DeviceID: f.DeviceID,
		AgentID: f.AgentID, SessionID: s.id, Allowed: true, Result: r.String(), Code: r})
	return n
}

// Close ends s as End does, but its id may come back: the tunnel or connection
// behind it is gone.
func (a *Access) Close(s *Session, r reason.Reason) int { return a.end(s, r, a.cfg.Now()) }

// end ends s once and cuts its leases. start is when the cause came.
func (a *Access) end(s *Session, r reason.Reason, start time.Time) int {
	return max(0, a.endIf(s, r, start, nil))
}

// endIf is end if the session lives and cond, asked under its lock, holds; else
// it returns -1.
func (a *Access) endIf(s *Session, r reason.Reason, start time.Time, cond func() bool) int {
	s.mu.Lock()
	if s.ended || cond != nil && !cond() {
		s.mu.Unlock()
		return -1
	}
	s.ended, s.why = true, r
	leases := append([]*Lease(nil), s.leases...)
	used := s.usages
	s.usages = nil
	close(s.done)
	s.mu.Unlock()
	a.sessions.remove(s)
	a.due.remove(s)
	n := 0
	for _, l := range leases {
		if a.cut(l, r, start) {
			n++
		}
	}
	for _, u := range used {
		a.usages.unref(u, a.cfg.Now())
	}
	a.reportCut(s, "", r, n, start)
	return n
}

// evictOne makes room for a session: it ends one that has been idle for a
// minute. It looks at a few shards only, so that a full table costs a request
// little.
func (a *Access) evictOne(now time.Time) bool {
	var buf []*Session
	first := rand.IntN(len(a.sessions.shards))
	for i := range 4 {
		buf = a.sessions.copyShard((first+i)%len(a.sessions.shards), buf[:0])
		for _, s := range buf {
			if a.endIdle(s, now, time.Minute) {
				return true
			}
		}
	}
	return false
}

// endIdle ends s when it has no lease and was not used for after.
func (a *Access) endIdle(s *Session, now time.Time, after time.Duration) bool {
	if now.Sub(time.Unix(0, s.lastUsed.Load())) < after {
		return false
	}
	return a.endIf(s, reason.IdleTimeout, now, func() bool { return len(s.leases) == 0 }) >= 0
}
