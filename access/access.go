// Package access is the heart of the gateway: it knows the live sessions and
// the leases of everything that flows, decides with the current
// [policy.Snapshot], and cuts what loses its right (clause 5.3 of CSA GCR
// 002-2025: real-time authorization, continuous monitoring).
//
// Everything that flows holds a [Lease]: an HTTP request or stream, a
// WebSocket, a body of server-sent events, a TCP or UDP flow. Acquire gives it,
// Release ends it, and in between the monitor may cut it through its [Carrier].
//
// One rule keeps leases from leaking. Acquire registers first and decides
// second, on the state that it loads after registering; whoever changes the
// state publishes it first and walks the leases second. So either Acquire sees
// the new state, or the walk sees the lease. The same rule holds for sessions:
// Attach inserts first and looks for revocations second.
//
// Read acquire.go for the way of a request, apply.go for the way of a list,
// monitor.go for the way of time.
package access

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// Config is what an [Access] needs. The zero value of a field selects its
// default.
type Config struct {
	GatewayID   string                // of the audit records
	Audit       audit.Sink            // default: none
	Alerts      alert.Sink            // default: none
	Logger      *zap.Logger           // default: none
	Registerer  prometheus.Registerer // default: none
	Now         func() time.Time      // default time.Now
	TokenKey    *policy.TokenKey      // default: a fresh one
	MaxSessions int                   // default 200,000; more are refused
	IdleAfter   time.Duration         // a session without leases ends after it; default 15 min
	RenewWithin time.Duration         // longest time between Table 14 messages of a session with a token; default: none but the token's expiry
	RevokeFor   time.Duration         // how long a revoked session id is remembered; default 24 h, the longest life of a cookie
	MaxGuesses  int                   // wrong tokens a minute and device; default 10 (S3)
}

// RotationGrace is how long a token that a newer one has replaced still counts.
const RotationGrace = 60 * time.Second

// Validate checks c.
func (c *Config) Validate() error {
	var errs []error
	for name, n := range map[string]int64{
		"max_sessions": int64(c.MaxSessions), "idle_after": int64(c.IdleAfter), "renew_within": int64(c.RenewWithin),
		"revoke_for": int64(c.RevokeFor), "max_guesses": int64(c.MaxGuesses),
	} {
		if n < 0 {
			errs = append(errs, errors.New("access."+name+": must not be negative"))
		}
	}
	return errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	if c.Audit == nil {
		c.Audit = audit.Discard
	}
	if c.Alerts == nil {
		c.Alerts = alert.Discard
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Now = steady(c.Now)
	if c.TokenKey == nil {
		c.TokenKey = policy.NewTokenKey()
	}
	if c.MaxSessions <= 0 {
		c.MaxSessions = 200_000
	}
	if c.IdleAfter <= 0 {
		c.IdleAfter = 15 * time.Minute
	}
	if c.RevokeFor <= 0 {
		c.RevokeFor = 24 * time.Hour
	}
	if c.MaxGuesses <= 0 {
		c.MaxGuesses = 10
	}
	return c
}

// Access holds the live sessions and leases. Its methods are safe for
// concurrent use.
type Access struct {
	cfg   Config
	state atomic.Pointer[state] // readers load once per decision; values are immutable

	applyMu sync.Mutex // one list at a time
	faults  atomic.Int64

	stateMu  sync.Mutex     // held to publish a state, never while deciding or cutting
	handles  map[string]App // guarded by stateMu
	appIDs   []string       // by handle; guarded by stateMu
	narrowed uint64         // number of Narrow calls; guarded by stateMu

	sessions table
	usages   usageTable
	rotated  rotationTable
	revoked  revocations
	guesses  guessTable
	due      schedule
	metrics  *metrics
	locksMu  sync.Mutex
	locked   map[string]bool // locks that were alerted; guarded by locksMu

	contact  atomic.Pointer[time.Time] // last proof of the control center; nil: none
	freshDue atomic.Int64              // when freshness may change next, unix nanoseconds
	wasFresh map[string]Freshness      // by appId; owned by the monitor

	leaseSeq atomic.Uint64
	closed   atomic.Bool

	afterRegister func() // tests: between registering and deciding; nil otherwise
}

// state is what decisions are made on.
type state struct {
	snap  *policy.Snapshot
	apps  []policy.AppIndex // of snap, by handle
	next  *policy.Snapshot  // while a list is being stored: it must allow, too; or nil
	nexts []policy.AppIndex // of next, by handle
	ids   []string          // of applications, by handle
	stale *staleness        // how old lists may be; nil: no limits but their own end
	over  *overlay          // what was narrowed since snap was built; or nil
}

// New returns an Access without a list: it denies everything until Apply. Call
// Run for the monitor.
func New(c Config) *Access {
	a := &Access{cfg: c.withDefaults(), handles: map[string]App{}, locked: map[string]bool{}, wasFresh: map[string]Freshness{}}
	a.sessions.init()
	a.usages.init()
	a.rotated.m = map[[16]byte]rotation{}
	a.revoked.init(a.cfg.RevokeFor)
	a.guesses.init(a.cfg.MaxGuesses)
	a.due.wake = make(chan struct{}, 1)
	snap, _ := policy.Build(policy.Input{NoList: true, Key: a.cfg.TokenKey})
	a.state.Store(&state{snap: snap})
	a.metrics = newMetrics(a, a.cfg.Registerer)
	return a
}

// App is a small stable handle of an application. The zero App is invalid and
// every request for it is refused.
type App struct{ n uint32 }

// App returns the handle of an application, which stays the same for the life
// of a. It is meant to be called once per configuration.
func (a *Access) App(id string) App {
	a.stateMu.Lock()
	defer a.stateMu.Unlock()
	if h, ok := a.handles[id]; ok {
		return h
	}
	a.appIDs = append(a.appIDs, id)
	h := App{uint32(len(a.appIDs))}
	a.handles[id] = h
	st := *a.state.Load()
	st.apps = a.resolve(st.snap)
	st.nexts = a.resolve(st.next)
	st.ids = slices.Clone(a.appIDs)
	st.stale = st.stale.resolve(a.appIDs)
	a.state.Store(&st)
	return h
}

// resolve returns the numbers of all handles in snap. a.stateMu is held.
func (a *Access) resolve(snap *policy.Snapshot) []policy.AppIndex {
	if snap == nil {
		return nil
	}
	out := make([]policy.AppIndex, len(a.appIDs))
	for i, id := range a.appIDs {
		out[i] = snap.App(id)
	}
	return out
}

// handleID returns the id of a handle, or "".
func (a *Access) handleID(h App) string {
	ids := a.state.Load().ids
	if h.n == 0 || int(h.n) > len(ids) {
		return ""
	}
	return ids[h.n-1]
}

// Snapshot returns the snapshot in force.
func (a *Access) Snapshot() *policy.Snapshot { return a.state.Load().snap }

// Locks returns the locks in force that came since the snapshot, and those of
// it.
func (a *Access) Locks() []policy.Lock {
	st := a.state.Load()
	out := st.snap.Locks()
	if st.over != nil {
		for _, l := range st.over.locks {
			if !slices.ContainsFunc(out, func(o policy.Lock) bool { return o.Kind == l.lock.Kind && o.ID == l.lock.ID }) {
				out = append(out, l.lock)
			}
		}
	}
	return out
}

// decide is the one way to a decision: overlay, snapshot and, while a list is
// being stored, the next one.
func (a *Access) decide(st *state, sub *policy.Subject, app App, r *policy.Request, now time.Time) policy.Decision {
	if st.over != nil {
		if d := st.over.deny(sub, app, now); d.Reason != reason.OK {
			return d
		}
	}
	d := a.ask(st.snap, st.apps, sub, app, r, now)
	if st.next == nil || d.Reason != reason.OK {
		return d
	}
	n := a.ask(st.next, st.nexts, sub, app, r, now)
	if n.Reason != reason.OK {
		return n
	}
	n.RecheckAt = earlier(d.RecheckAt, n.RecheckAt)
	n.Limited = n.Limited || d.Limited
	return n
}

func (a *Access) ask(snap *policy.Snapshot, apps []policy.AppIndex, sub *policy.Subject, app App, r *policy.Request, now time.Time) policy.Decision {
	var n policy.AppIndex
	if i := int(app.n) - 1; i >= 0 && i < len(apps) {
		n = apps[i]
	}
	d := snap.Decide(sub, n, r, now)
	if d.Reason == reason.TokenUnknown {
		grace, why := a.rotated.find(sub, now)
		if why == reason.OK {
			return snap.DecideRotated(sub, n, r, now, grace)
		}
		d.Reason = why
	}
	return d
}

// admit is decide without an application: may the subject be here at all.
func (a *Access) admit(st *state, sub *policy.Subject, now time.Time) policy.Decision {
	if st.over != nil {
		if d := st.over.deny(sub, App{}, now); d.Reason != reason.OK {
			return d
		}
	}
	d := a.askAdmit(st.snap, sub, now)
	if st.next == nil || d.Reason != reason.OK {
		return d
	}
	n := a.askAdmit(st.next, sub, now)
	n.RecheckAt = earlier(d.RecheckAt, n.RecheckAt)
	return n
}

func (a *Access) askAdmit(snap *policy.Snapshot, sub *policy.Subject, now time.Time) policy.Decision {
	d := snap.Admit(sub, now)
	if d.Reason == reason.TokenUnknown {
		grace, why := a.rotated.find(sub, now)
		if why == reason.OK {
			return snap.AdmitRotated(sub, now, grace)
		}
		d.Reason = why
	}
	return d
}

// earlier returns the earlier of two times of which zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Explain says how a decision on f, appID and r comes about now, with the
// snapshot in force.
func (a *Access) Explain(f policy.Facts, appID string, r policy.Request) policy.Trace {
	return a.state.Load().snap.Explain(f, appID, r, a.cfg.Now())
}
