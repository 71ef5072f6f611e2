package policy

import (
	"slices"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// Snapshot is an immutable set of grants, policies and locks. It is safe for
// concurrent use. Tables are flat and applications are small integers, so that
// a decision takes no string map and allocates nothing.
type Snapshot struct {
	serial      uint64 // no other snapshot of the process has it
	key         *TokenKey
	rows        rows
	byPair      index
	byToken     index
	live        uint32 // rows that are not dead
	badRows     int
	apps        []appRow // 0 is the unknown application
	appIndex    map[id]uint32
	setOff      []uint32 // set k is setApps[setOff[k]:setOff[k+1]], ascending
	setApps     []uint32
	users       map[id]*userRuns
	lockedBy    lockTable
	browser     id
	browserName string

	version, policyVersion uint64
	grantSum, policySum    wire.Sum // of the rows; of the policies and locks
	notAfter               int64
	noList                 bool
	rotated                rotations

	// What it was compiled of, for Edit, Explain and Diff.
	appList      []App
	policies     []wire.Policy
	ceiling      []wire.Policy
	locks        []Lock
	bad          []BadRow
	rules        []*rule
	policyFaults []Fault
}

// AppIndex is the number of an application in one snapshot; 0 is unknown.
type AppIndex uint32

type appRow struct {
	id            id
	name          string
	level         int32
	registered    bool
	refuseBrowser bool
	lock          int32 // that is on it, or -1
	run           run
}

// run is the policies of one application, or of one user beside them, ready to
// be walked.
type run struct {
	groups []*group // that decide, in the order in which denials are reported
	steps  []step   // the same, flat: what a decision walks
	// Those of the steps that hang on method and path, which no memo covers.
	perRequest []step
	rates      []RateLimit
	maxConn    *rule // the tightest; nil: none
}

type userRuns struct {
	all  run
	apps map[uint32]*run
}

// group is the alternatives of one type in one scope.
type group struct {
	typ     Type
	why     reason.Reason
	ceiling bool
	alone   bool // an unbound policy
	scope   scope
	rules   []*rule // by policyId
}

// step is a group as a decision meets it. Most groups have one rule, which is
// here, so that a decision does not chase group, rule and data through memory.
type step struct {
	typ  Type
	spec grammar // of the one rule; nil: ask the group
	g    *group
}

// flatten fills the steps from the groups.
func (r *run) flatten() {
	r.steps, r.perRequest = make([]step, len(r.groups)), nil
	for i, g := range r.groups {
		r.steps[i] = step{typ: g.typ, g: g}
		if len(g.rules) == 1 {
			r.steps[i].spec = g.rules[0].spec
		}
		if g.typ == TypeApp {
			r.perRequest = append(r.perRequest, r.steps[i])
		}
	}
}

// rule is one row of Table 9, parsed.
type rule struct {
	id      string
	name    string
	typ     Type
	spec    grammar
	ceiling bool
}

// App returns the number of an application.
func (s *Snapshot) App(appID string) AppIndex {
	d, _ := makeID(appID)
	return AppIndex(s.appIndex[d])
}

// Version returns the versions of the grants and of the policies.
func (s *Snapshot) Version() (grants, policies uint64) { return s.version, s.policyVersion }

// StateHash returns what is in force, for the control center to compare.
func (s *Snapshot) StateHash() wire.StateHash {
	return wire.StateHash{
		Grants:   wire.VersionHash{Version: s.version, Hash: s.grantSum.String()},
		Policies: wire.VersionHash{Version: s.policyVersion, Hash: s.policySum.String()},
	}
}

// NotAfter returns the end of the lists; zero is no end.
func (s *Snapshot) NotAfter() time.Time { return instant(s.notAfter) }

// NoList reports whether s stands for no list at all.
func (s *Snapshot) NoList() bool { return s.noList }

// BrowserDevice returns the deviceId of the browser class.
func (s *Snapshot) BrowserDevice() string { return s.browserName }

// Key returns the key under which s indexes tokens.
func (s *Snapshot) Key() *TokenKey { return s.key }

// Rotated returns the tokens that s replaced. The slice is read-only.
func (s *Snapshot) Rotated() []Rotation { return s.rotated }

// Locks returns the locks of s. The slice is the caller's.
func (s *Snapshot) Locks() []Lock { return slices.Clone(s.locks) }

// Policies returns the policies of the control center. The slice is the
// caller's.
func (s *Snapshot) Policies() []wire.Policy { return slices.Clone(s.policies) }

// Counts returns the number of grant rows, of rows that grant nothing because
// they cannot be read, and of policies.
func (s *Snapshot) Counts() (rows, bad, policies int) {
	return int(s.live), s.badRows, len(s.policies) + len(s.ceiling)
}

func (s *Snapshot) set(k uint32) []uint32 { return s.setApps[s.setOff[k]:s.setOff[k+1]] }

// inSet reports whether set k holds app.
func (s *Snapshot) inSet(k, app uint32) bool {
	lo, hi := s.setOff[k], s.setOff[k+1]
	for lo < hi {
		mid := (lo + hi) / 2
		if v := s.setApps[mid]; v == app {
			return true
		} else if v < app {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return false
}

// lockTable finds the locks on a subject.
type lockTable struct{ user, device, agent, session map[string]int32 }

// find returns the lock in force that a subject is under, or -1. Of several it
// takes the first in the order of its list's ids, so rows may come in any order.
func (s *Snapshot) findLock(f *Facts, app uint32, now int64) int32 {
	best := int32(-1)
	see := func(i int32) {
		if i >= 0 && (best < 0 || i < best) && s.lockInForce(i, now) {
			best = i
		}
	}
	t := &s.lockedBy
	look := func(m map[string]int32, k string) {
		if len(m) != 0 && k != "" {
			if i, ok := m[k]; ok {
				see(i)
			}
		}
	}
	look(t.user, f.UserID)
	look(t.device, f.DeviceID)
	if f.Browser {
		look(t.device, s.browserName)
	}
	look(t.agent, f.AgentID)
	look(t.session, f.SessionID)
	if sid, _, part := strings.Cut(f.SessionID, "/"); part { // of the sign-in sid, on a device
		look(t.session, sid)
	}
	if app != 0 {
		see(s.apps[app].lock)
	}
	return best
}

func (s *Snapshot) lockInForce(i int32, now int64) bool {
	u := s.locks[i].Until
	return u.IsZero() || now < nanos(u)
}
