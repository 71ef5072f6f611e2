package access

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

// Freshness says how old, for one application, the gateway's knowledge of the
// control center's will is: the age of the last contact that proved it.
type Freshness uint8

// The states of freshness, each narrower than the one before.
const (
	Fresh       Freshness = iota //
	StaleOK                      // everything goes on; an alert says so
	StaleStrict                  // new sessions are refused, or everything: [Staleness].StrictRefuses
	Expired                      // everything is refused and cut
	freshnesses
)

// String returns the state as status, metrics and Table 10 have it.
func (f Freshness) String() string {
	if f < freshnesses {
		return [...]string{"fresh", "stale-ok", "stale-strict", "expired"}[f]
	}
	return "unknown"
}

// MarshalText is for JSON.
func (f Freshness) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (f *Freshness) UnmarshalText(b []byte) error {
	for k := range freshnesses {
		if k.String() == string(b) {
			*f = k
			return nil
		}
	}
	return fmt.Errorf("read freshness: %q is none", b)
}

// What StaleStrict refuses.
const (
	RefuseNew = "new_sessions" // whose sign-in came after the state began
	RefuseAll = "all"          // every flow; live ones are cut
)

// Staleness holds the ages of the last contact at which an application changes
// its state. The zero value of a field selects its default.
type Staleness struct {
	Fresh         time.Duration `yaml:"fresh"`          // up to here fresh; default 2m
	Strict        time.Duration `yaml:"strict"`         // from here stale-strict; default 12h
	Expire        time.Duration `yaml:"expire"`         // from here expired; default: only the list's own end
	StrictRefuses string        `yaml:"strict_refuses"` // new_sessions (default) or all
}

// Validate returns every fault of s, each named by its YAML path. Defaults are
// filled in from def first.
func (s Staleness) Validate(def Staleness) error {
	s = s.Or(def)
	var errs []error
	if s.Fresh < time.Minute {
		errs = append(errs, fmt.Errorf("fresh: %s is less than 1m (the control center is heard every 55 s)", s.Fresh))
	}
	if s.Strict < s.Fresh {
		errs = append(errs, fmt.Errorf("strict: %s is less than fresh (%s)", s.Strict, s.Fresh))
	}
	if s.Expire != 0 && s.Expire < s.Strict {
		errs = append(errs, fmt.Errorf("expire: %s is less than strict (%s)", s.Expire, s.Strict))
	}
	if s.StrictRefuses != RefuseNew && s.StrictRefuses != RefuseAll {
		errs = append(errs, fmt.Errorf("strict_refuses: %q is neither %s nor %s", s.StrictRefuses, RefuseNew, RefuseAll))
	}
	return errors.Join(errs...)
}

// DefaultStaleness is what holds where nothing is configured.
var DefaultStaleness = Staleness{Fresh: 2 * time.Minute, Strict: 12 * time.Hour, StrictRefuses: RefuseNew}

// Or returns s with the fields of def where it has none.
func (s Staleness) Or(def Staleness) Staleness {
	if s.Fresh == 0 {
		s.Fresh = def.Fresh
	}
	if s.Strict == 0 {
		s.Strict = max(def.Strict, s.Fresh)
	}
	if s.Expire == 0 {
		s.Expire = def.Expire
	}
	if s.StrictRefuses == "" {
		s.StrictRefuses = def.StrictRefuses
	}
	return s
}

// at returns the state at an age of the last contact.
func (s *Staleness) at(age time.Duration) Freshness {
	switch {
	case s.Expire != 0 && age >= s.Expire:
		return Expired
	case age >= s.Strict:
		return StaleStrict
	case age >= s.Fresh:
		return StaleOK
	}
	return Fresh
}

// next returns the smallest limit above age.
func (s *Staleness) next(age time.Duration) time.Duration {
	n := time.Duration(math.MaxInt64)
	for _, d := range []time.Duration{s.Fresh, s.Strict, s.Expire} {
		if d > age {
			n = min(n, d)
		}
	}
	return n
}

// staleness is the limits in force. It is immutable.
type staleness struct {
	def  Staleness
	apps map[string]Staleness
	by   []Staleness // by handle - 1
}

func (s *staleness) resolve(appIDs []string) *staleness {
	if s == nil {
		return nil
	}
	n := &staleness{def: s.def, apps: s.apps, by: make([]Staleness, len(appIDs))}
	for i, id := range appIDs {
		n.by[i] = s.def
		if own, ok := s.apps[id]; ok {
			n.by[i] = own
		}
	}
	return n
}

// SetStaleness puts limits in force: def, and of some applications their own.
// Until it is called nothing is stale before its list ends.
func (a *Access) SetStaleness(def Staleness, apps map[string]Staleness) {
	s := &staleness{def: def.Or(DefaultStaleness), apps: map[string]Staleness{}}
	for id, own := range apps {
		s.apps[id] = own.Or(s.def)
	}
	a.stateMu.Lock()
	st := *a.state.Load()
	st.stale = s.resolve(a.appIDs)
	a.state.Store(&st)
	a.stateMu.Unlock()
	a.walk(a.cfg.Now(), nil)
	a.lookAtFreshness()
}

// Contact notes that the control center has proved to be there at at. An older
// contact than the newest is ignored.
func (a *Access) Contact(at time.Time) {
	// As an age before now it follows the monotonic clock from here on: a clock
	// that steps back makes nothing younger (R17).
	now := a.cfg.Now()
	at = now.Add(-max(0, now.Sub(at)))
	for {
		old := a.contact.Load()
		if old != nil && !at.After(*old) {
			return
		}
		if a.contact.CompareAndSwap(old, &at) {
			break
		}
	}
	a.lookAtFreshness()
}

// lookAtFreshness lets the monitor see a change.
func (a *Access) lookAtFreshness() {
	a.freshDue.Store(0)
	a.due.poke()
}

// age returns how long ago the last contact was; false if there was none.
func (a *Access) age(now time.Time) (time.Duration, bool) {
	c := a.contact.Load()
	if c == nil {
		return 0, false
	}
	return max(0, now.Sub(*c)), true
}

// judge is decide and, of what the list allows, what its age still allows s.
func (a *Access) judge(st *state, s *Session, sub *policy.Subject, app App, r *policy.Request, now time.Time) policy.Decision {
	d := a.decide(st, sub, app, r, now)
	if st.stale == nil || d.Reason != reason.OK {
		return d
	}
	age, ok := a.age(now)
	if !ok {
		return policy.Decision{Reason: reason.ListExpired}
	}
	lim := &st.stale.def
	if i := int(app.n) - 1; i < len(st.stale.by) {
		lim = &st.stale.by[i]
	}
	if lim.Expire != 0 {
		if age >= lim.Expire {
			return policy.Decision{Reason: reason.ListExpired}
		}
		d.RecheckAt = earlier(d.RecheckAt, now.Add(lim.Expire-age))
	}
	switch {
	case age < lim.Strict:
		if lim.StrictRefuses == RefuseAll {
			d.RecheckAt = earlier(d.RecheckAt, now.Add(lim.Strict-age))
		}
	case lim.StrictRefuses == RefuseAll || !began(s, sub).Before(now.Add(lim.Strict-age)):
		return policy.Decision{Reason: reason.ListStale}
	}
	return d
}

// began is when the subject of s signed in, as far as is known.
func began(s *Session, sub *policy.Subject) time.Time {
	if at := sub.Identity().AuthTime; !at.IsZero() {
		return at
	}
	return s.since
}

// Freshness returns the state of an application now.
func (a *Access) Freshness(app App) Freshness {
	now := a.cfg.Now()
	return a.freshness(a.state.Load(), app, now)
}

func (a *Access) freshness(st *state, app App, now time.Time) Freshness {
	if end := st.snap.NotAfter(); !st.snap.NoList() && !end.IsZero() && !now.Before(end) {
		return Expired
	}
	if st.stale == nil {
		return Fresh
	}
	age, ok := a.age(now)
	if !ok {
		return Expired
	}
	if i := int(app.n) - 1; i >= 0 && i < len(st.stale.by) {
		return st.stale.by[i].at(age)
	}
	return st.stale.def.at(age)
}

// LastContact returns when the control center proved to be there; zero if never.
func (a *Access) LastContact() time.Time {
	if c := a.contact.Load(); c != nil {
		return *c
	}
	return time.Time{}
}

// watchFreshness raises the alerts of applications whose state has changed, and
// returns when the next one may. Only the monitor calls it.
func (a *Access) watchFreshness(now time.Time) time.Time {
	if due := a.freshDue.Load(); due > now.UnixNano() {
		return time.Unix(0, due)
	}
	a.freshDue.Store(math.MaxInt64) // before the look: a change meanwhile lowers it
	st := a.state.Load()
	age, ok := a.age(now)
	if st.stale == nil || !ok || st.snap.NoList() {
		return time.Time{}
	}
	changed := map[Freshness][]string{}
	wait := time.Duration(math.MaxInt64)
	for i, id := range st.ids {
		f := a.freshness(st, App{uint32(i + 1)}, now)
		if f != a.wasFresh[id] {
			changed[f] = append(changed[f], fmt.Sprintf("%s (was %s)", id, a.wasFresh[id]))
			a.wasFresh[id] = f
		}
		if i < len(st.stale.by) {
			wait = min(wait, st.stale.by[i].next(age)-age)
		}
	}
	if end := st.snap.NotAfter(); end.After(now) {
		wait = min(wait, end.Sub(now))
	}
	for f, ids := range changed {
		code := [...]alert.Code{alert.ListFresh, alert.ListStale, alert.ListStrict, alert.ListEnded}[f]
		why := [...]reason.Reason{reason.OK, reason.OK, reason.ListStale, reason.ListExpired}[f]
		slices.Sort(ids)
		detail := fmt.Sprintf("%s, last contact %s ago: %s", plural(len(ids), "application"), age.Round(time.Second), strings.Join(ids[:min(len(ids), 10)], ", "))
		a.raise(alert.Alert{Code: code, Time: now, Reason: why, Detail: detail})
	}
	if wait == math.MaxInt64 {
		return time.Time{}
	}
	at := now.Add(wait)
	a.freshDue.CompareAndSwap(math.MaxInt64, at.UnixNano())
	return at
}
