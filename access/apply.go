package access

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

// Pair is a (user, device) of Table 7.
type Pair struct {
	UserID   string `json:"userId"`
	DeviceID string `json:"deviceId"`
}

// Revocation ends one session with its parts ("sid" ends "sid/device", too), or every session of a user whose sign-in was
// before IssuedBefore; zero is now.
type Revocation struct {
	SessionID    string    `json:"sessionId,omitzero"`
	UserID       string    `json:"userId,omitzero"`
	IssuedBefore time.Time `json:"issuedBefore,omitzero"`
}

// Delta is a change of the lists.
type Delta struct {
	From, To uint64 // versions of the grants
	Remove   []Pair
	Grants   []policy.Row // each replaces the row of its (user, device)
	Locks    []policy.Lock
	Unlocks  []policy.Lock // by Kind and ID
	Revoke   []Revocation
}

// Apply builds a snapshot of in, swaps it in, and looks at every lease again.
// It returns the rows that could not be taken. A Narrow is never waiting for
// it.
func (a *Access) Apply(in policy.Input) []policy.Fault {
	faults, _ := a.ApplyStored(in, nil)
	return faults
}

// ApplyStored is Apply in the order of a list that comes over the network: what
// in takes away is denied and cut first, then store is called, and only when
// that succeeds the rest takes effect. When it fails, what was taken away stays
// taken away until the next list.
func (a *Access) ApplyStored(in policy.Input, store func() error) ([]policy.Fault, error) {
	return a.update(func(cur *policy.Snapshot) (*policy.Snapshot, []policy.Fault) {
		in.Key = a.cfg.TokenKey
		return policy.BuildAfter(in, cur)
	}, store)
}

// ErrGap is returned for a delta that does not follow the list in force. What
// it takes away is in force nevertheless; the rest needs a full list.
var ErrGap = errors.New("access: the delta does not follow the list in force (pull the full list)")

// ApplyDelta narrows by d at once, then puts its rows and locks into a snapshot
// made of the one in force, as ApplyStored does. It returns [ErrGap] when From
// is not the version in force.
func (a *Access) ApplyDelta(d Delta, store func() error) ([]policy.Fault, error) {
	a.Narrow(d)
	if v, _ := a.Snapshot().Version(); d.From != v {
		return nil, ErrGap
	}
	return a.update(func(cur *policy.Snapshot) (*policy.Snapshot, []policy.Fault) {
		b := cur.Edit()
		for _, p := range d.Remove {
			b.Remove(p.UserID, p.DeviceID)
		}
		for _, r := range d.Grants {
			b.Put(r)
		}
		if len(d.Locks)+len(d.Unlocks) != 0 {
			b.SetLocks(mergeLocks(cur.Locks(), d))
		}
		if d.To != 0 {
			b.SetVersion(d.To)
		}
		return b.Finish()
	}, store)
}

// Change swaps in a snapshot made of the one in force: for new applications, a
// new ceiling, or a list of policies without one of grants. edit is called with
// a builder of its own and must not keep it.
func (a *Access) Change(edit func(*policy.Builder), store func() error) ([]policy.Fault, error) {
	return a.update(func(cur *policy.Snapshot) (*policy.Snapshot, []policy.Fault) {
		b := cur.Edit()
		edit(b)
		return b.Finish()
	}, store)
}

// ApplyPages swaps in a snapshot of a list whose pages went into b as they
// arrived, so that only the policies are left to compile. b comes from
// [Access.Builder].
func (a *Access) ApplyPages(b *policy.Builder, store func() error) ([]policy.Fault, error) {
	return a.update(func(*policy.Snapshot) (*policy.Snapshot, []policy.Fault) { return b.Finish() }, store)
}

// Builder returns a builder without rows for the pages of a full list; the
// applications, policies, ceiling and locks are those in force.
func (a *Access) Builder() *policy.Builder { return a.state.Load().snap.Renew() }

func mergeLocks(locks []policy.Lock, d Delta) []policy.Lock {
	gone := func(l policy.Lock) bool {
		same := func(o policy.Lock) bool { return o.Kind == l.Kind && o.ID == l.ID }
		return slices.ContainsFunc(d.Unlocks, same) || slices.ContainsFunc(d.Locks, same)
	}
	return append(slices.DeleteFunc(locks, gone), d.Locks...)
}

// update is the one way of a new snapshot: build, narrow, store, swap, recheck.
func (a *Access) update(build func(cur *policy.Snapshot) (*policy.Snapshot, []policy.Fault), store func() error) ([]policy.Fault, error) {
	start := a.cfg.Now()
	a.applyMu.Lock()
	defer a.applyMu.Unlock()
	a.stateMu.Lock()
	before := a.narrowed
	a.stateMu.Unlock()

	snap, faults := build(a.state.Load().snap)
	a.report(faults, start)
	a.rotated.add(snap.Rotated(), start)
	if store != nil {
		a.publish(func(st *state) { st.next = snap })
		a.walk(start, nil)
		if err := store(); err != nil {
			return faults, fmt.Errorf("store the list, what it takes away is in force, what it gives is not: %w", err)
		}
	}
	swap := a.cfg.Now()
	a.publish(func(st *state) {
		st.snap, st.next = snap, nil
		st.over = st.over.after(snap, before, swap)
	})
	a.lookAtFreshness()
	a.metrics.applied(a.cfg.Now().Sub(start))
	a.walk(start, nil)
	a.alertLocks(snap.Locks(), start)
	g, p := snap.Version()
	a.cfg.Logger.Info("list applied", zap.Uint64("version", g), zap.Uint64("policy_version", p), zap.Int("faults", len(faults)))
	return faults, nil
}

// publish makes a new state out of the one in force.
func (a *Access) publish(change func(*state)) {
	a.stateMu.Lock()
	defer a.stateMu.Unlock()
	st := *a.state.Load()
	change(&st)
	st.apps, st.nexts = a.resolve(st.snap), a.resolve(st.next)
	a.state.Store(&st)
}

// Narrow denies at once what d takes away, and cuts it: removed pairs, locks
// and revoked sessions. It waits for no list that is being built. What d gives
// needs ApplyDelta or the next list; unlocking takes effect here only for locks
// that came by Narrow.
func (a *Access) Narrow(d Delta) {
	start := a.cfg.Now()
	for _, r := range d.Revoke { // before the walk, see Attach
		if r.SessionID != "" {
			a.revoked.addSession(r.SessionID, start)
		}
		if r.UserID != "" {
			if r.IssuedBefore.IsZero() {
				r.IssuedBefore = start
			}
			a.revoked.addUser(r.UserID, r.IssuedBefore)
		}
	}
	if len(d.Remove)+len(d.Locks)+len(d.Unlocks) != 0 {
		a.publish(func(st *state) {
			a.narrowed++
			st.over = st.over.with(d, a.narrowed, st.snap, start, a.handles)
		})
	}
	a.endRevoked(d.Revoke, start)
	if len(d.Remove)+len(d.Locks) != 0 {
		a.walk(start, narrowMatch(d))
	}
	// Last: an agent that hears of a lock ends its flows itself, and the audit
	// would say that nothing was amiss.
	a.alertLocks(d.Locks, start)
}

// narrowMatch selects the sessions that d may touch.
func narrowMatch(d Delta) func(*Session) bool {
	pairs := make(map[Pair]bool, len(d.Remove))
	for _, p := range d.Remove {
		pairs[p] = true
	}
	ids := make(map[string]bool, len(d.Locks))
	for _, l := range d.Locks {
		if l.Kind != "user" && l.Kind != "device" && l.Kind != "agent" && l.Kind != "session" {
			return nil // an application's lock touches everybody
		}
		ids[l.ID] = true
	}
	return func(s *Session) bool {
		f := s.subject.Load().Identity()
		return f.Browser || pairs[Pair{f.UserID, f.DeviceID}] || // browsers: the class may be meant
			ids[f.UserID] || ids[f.DeviceID] || ids[f.AgentID] || ids[f.SessionID] || ids[whole(f.SessionID)]
	}
}

// endRevoked ends the live sessions that the revocations name.
func (a *Access) endRevoked(revoke []Revocation, start time.Time) {
	users := map[string]bool{}
	for _, r := range revoke {
		if r.SessionID != "" {
			for _, s := range a.sessions.parts(r.SessionID) {
				a.endRevokedSession(s, start)
			}
		}
		if r.UserID != "" {
			users[r.UserID] = true
		}
	}
	if len(users) == 0 {
		return
	}
	for _, s := range a.sessions.all() {
		if users[s.subject.Load().Identity().UserID] {
			a.endRevokedSession(s, start)
		}
	}
}

// endRevokedSession ends s if it is revoked. Who locks revokes, too: the reason
// that a person and the audit are told is the lock.
func (a *Access) endRevokedSession(s *Session, start time.Time) {
	subject := s.subject.Load()
	why := a.revoked.check(s.id, subject.Identity().UserID, s.issued())
	if why == reason.OK {
		return
	}
	if over := a.state.Load().over; over != nil && over.deny(subject, App{}, start).Reason == reason.Locked {
		why = reason.Locked
	}
	a.end(s, why, start)
}

// report raises the alerts of faults: one for each policy, one for all grants.
func (a *Access) report(faults []policy.Fault, now time.Time) {
	a.faults.Store(int64(len(faults)))
	grants, first := 0, policy.Fault{}
	for _, f := range faults {
		if f.Grant {
			if grants == 0 {
				first = f
			}
			grants++
			continue
		}
		a.cfg.Logger.Warn("policy row not taken", zap.String("policy_id", f.PolicyID), zap.Error(f))
		a.raise(alert.Alert{Code: alert.PolicyUnreadable, Time: now, Reason: f.Reason, Detail: f.Error()})
	}
	if grants > 0 {
		a.cfg.Logger.Warn("grant rows not taken", zap.Int("rows", grants), zap.NamedError("first", first))
		a.raise(alert.Alert{Code: alert.ListBadRow, Time: now, Reason: first.Reason, UserID: first.UserID, DeviceID: first.DeviceID,
			Detail: plural(grants, "row") + ", first: " + first.Error()})
	}
}

// alertLocks raises one alert for each lock that was not known yet.
func (a *Access) alertLocks(locks []policy.Lock, now time.Time) {
	for _, l := range locks {
		k := l.Kind + " " + l.ID + " " + l.Until.String()
		a.locksMu.Lock()
		known := a.locked[k]
		if len(a.locked) > 10_000 {
			clear(a.locked)
		}
		a.locked[k] = true
		a.locksMu.Unlock()
		if known || !l.Until.IsZero() && !now.Before(l.Until) {
			continue
		}
		al := alert.Alert{Code: alert.LockInForce, Time: now, Reason: reason.Locked, Detail: fmt.Sprintf("%s %s: %s", l.Kind, l.ID, l.Message)}
		switch l.Kind {
		case "user":
			al.UserID = l.ID
		case "device":
			al.DeviceID = l.ID
		case "app":
			al.AppID = l.ID
		case "session":
			al.SessionID = l.ID
		}
		a.raise(al)
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
