package access

import (
	"cmp"
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

// Run is the monitor: it looks at every session when its time has come, so that
// what time takes away is cut to the second. It blocks until ctx ends; then
// nobody watches any more, so it cuts every lease and refuses new ones.
func (a *Access) Run(ctx context.Context) error {
	const sweepEvery = 30 * time.Second
	timer := time.NewTimer(0)
	defer timer.Stop()
	swept := a.cfg.Now()
	for {
		select {
		case <-ctx.Done():
			a.shutDown()
			return nil
		case <-timer.C:
		case <-a.due.wake:
		}
		next := a.lookAtDue()
		now := a.cfg.Now()
		if now.Sub(swept) >= sweepEvery || now.Before(swept) {
			swept = now
			a.sweep(now)
		}
		// The wall clock may jump, so the timer never sleeps much longer than
		// a second while somebody is scheduled.
		wait := sweepEvery
		if at := a.watchFreshness(now); !at.IsZero() {
			wait = min(wait, max(0, at.Sub(now)))
		}
		if next != noDue {
			wait = min(wait, time.Second, max(0, time.Duration(next-now.UnixNano())))
		}
		timer.Reset(wait)
	}
}

// lookAtDue visits the sessions that are due and returns when the next one is.
func (a *Access) lookAtDue() int64 {
	v := visitor{a: a}
	for {
		now := a.cfg.Now()
		s, next := a.due.pop(now.UnixNano())
		if s == nil {
			v.cutSurplus(now)
			return next
		}
		a.visit(s, a.state.Load(), now, now, &v)
	}
}

func (a *Access) shutDown() {
	a.closed.Store(true)
	now := a.cfg.Now()
	for _, s := range a.sessions.all() {
		a.end(s, reason.Shutdown, now)
	}
}

// sweep ends idle sessions and forgets what is over.
func (a *Access) sweep(now time.Time) {
	for _, s := range a.sessions.all() {
		a.endIdle(s, now, a.cfg.IdleAfter)
	}
	a.usages.sweep(now)
	a.rotated.sweep(now)
	a.revoked.sweep(now)
	a.guesses.sweep(now)
}

// visitor holds what one walk gathers; it is for one goroutine. A nil visitor
// gathers nothing.
type visitor struct {
	a    *Access
	buf  []*Lease
	over map[*usage]int // usages beyond their maxconn, and that
}

// visit decides on every lease of s again, cuts those that have lost their
// right, and schedules the next visit. start is when the cause came.
func (a *Access) visit(s *Session, st *state, now, start time.Time, v *visitor) {
	if v == nil {
		v = &visitor{a: a}
		defer v.cutSurplus(start)
	}
	// First forget the old time, then gather: a lease that is granted meanwhile
	// either is seen here or brings the session forward itself.
	s.dueAt.Store(noDue)
	due := noDue
	sub := s.subject.Load()
	if sub.Identity().Token != "" {
		d := a.admit(st, sub, now)
		if why, fatal := fate(d.Reason); fatal {
			if why == reason.RenewalMissed {
				a.renewalMissed(s, now)
			}
			a.end(s, why, start)
			return
		}
		due = min(due, dueAt(d.RecheckAt))
		if a.cfg.RenewWithin > 0 {
			s.mu.Lock()
			missed := s.renewed.Add(a.cfg.RenewWithin)
			s.mu.Unlock()
			if !now.Before(missed) {
				a.renewalMissed(s, now)
				a.end(s, reason.RenewalMissed, start)
				return
			}
			due = min(due, missed.UnixNano())
		}
	}
	v.buf = s.copyLeases(v.buf[:0])
	cuts, why, app := 0, reason.OK, ""
	for _, l := range v.buf {
		switch l.state.Load() & 0xff {
		case pending, live:
		default:
			continue
		}
		d := a.judge(st, s, sub, l.app, &l.req, now)
		if d.Reason != reason.OK {
			r := withdrawn(d.Reason)
			if a.cut(l, r, start) {
				cuts, why, app = cuts+1, r, a.handleID(l.app)
			}
			continue
		}
		due = min(due, dueAt(d.RecheckAt))
		if d.Limited {
			if lim := a.limits(st, sub, l.app); lim.MaxConn >= 0 && int(l.use.active.Load()) > lim.MaxConn {
				if v.over == nil {
					v.over = map[*usage]int{}
				}
				v.over[l.use] = lim.MaxConn
			}
		}
	}
	clear(v.buf)
	a.due.lower(s, due)
	if due == noDue {
		a.due.place(s)
	}
	a.reportCut(s, app, why, cuts, now)
}

// fate maps the reason why a session with a token is not admitted to the reason
// that ends it, and reports whether it must end: a lock or a list that is out of
// date only stops its flows.
func fate(r reason.Reason) (reason.Reason, bool) {
	switch r {
	case reason.OK, reason.NoList, reason.ListExpired, reason.Locked:
		return r, false
	case reason.TokenExpired:
		return reason.RenewalMissed, true
	}
	return withdrawn(r), true
}

// withdrawn maps the reason of a decision to the reason of a cut: what was
// granted and is not any more was withdrawn.
func withdrawn(r reason.Reason) reason.Reason {
	switch r {
	case reason.NoGrant, reason.TokenUnknown, reason.AppNotGranted:
		return reason.GrantRevoked
	}
	return r
}

func (a *Access) renewalMissed(s *Session, now time.Time) {
	f := s.Facts()
	a.raise(alert.Alert{Code: alert.RenewalMissed, Time: now, Reason: reason.RenewalMissed, UserID: f.UserID, DeviceID: f.DeviceID, SessionID: s.id})
}

// reportCut raises one alert for the n leases that one cause took from s, unless
// it is no cause for one.
func (a *Access) reportCut(s *Session, app string, r reason.Reason, n int, now time.Time) {
	if n == 0 {
		return
	}
	switch r {
	case reason.OK, reason.LoggedOut, reason.TunnelClosed, reason.Shutdown, reason.ClientGone, reason.IdleTimeout, reason.Reload:
		return
	}
	f := s.Facts()
	a.raise(alert.Alert{Code: alert.SessionCut, Time: now, Reason: r, UserID: f.UserID, DeviceID: f.DeviceID,
		AppID: app, SessionID: s.id, Detail: plural(n, "flow")})
}

// walk visits the sessions that match, on every processor, and returns when all
// are done. A nil match is all.
func (a *Access) walk(start time.Time, match func(*Session) bool) {
	var wg sync.WaitGroup
	var shard atomic.Int32
	workers := min(runtime.GOMAXPROCS(0), 8)
	visitors := make([]visitor, workers)
	for i := range visitors {
		v := &visitors[i]
		v.a = a
		wg.Go(func() {
			var buf []*Session
			for {
				n := int(shard.Add(1)) - 1
				if n >= len(a.sessions.shards) {
					return
				}
				buf = a.sessions.copyShard(n, buf[:0])
				for _, s := range buf {
					if match == nil || match(s) {
						a.visit(s, a.state.Load(), a.cfg.Now(), start, v)
					}
				}
			}
		})
	}
	wg.Wait()
	all := visitor{a: a, over: map[*usage]int{}}
	for i := range visitors {
		for u, n := range visitors[i].over {
			all.over[u] = n
		}
	}
	all.cutSurplus(start)
}

// cutSurplus cuts the newest leases beyond a maxconn that was lowered: who came
// first stays.
func (v *visitor) cutSurplus(start time.Time) {
	if len(v.over) == 0 {
		return
	}
	held := map[*usage][]*Lease{}
	for _, s := range v.a.sessions.all() {
		for _, l := range s.copyLeases(nil) {
			if _, ok := v.over[l.use]; ok && l.state.Load()&0xff <= live {
				held[l.use] = append(held[l.use], l)
			}
		}
	}
	for u, leases := range held {
		slices.SortFunc(leases, func(x, y *Lease) int { return cmp.Compare(x.seq, y.seq) })
		for _, l := range leases[min(v.over[u], len(leases)):] {
			if v.a.cut(l, reason.PolicyMaxConn, start) {
				v.a.reportCut(l.s, v.a.handleID(l.app), reason.PolicyMaxConn, 1, start)
			}
		}
	}
	v.over = nil
}
