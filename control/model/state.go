package model

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/control/store"
	"github.com/yumen-zt/yumen/wire"
)

// forever is the end of a browser's row whose grants have none; the list's
// notAfter bounds it.
var forever = time.Date(2099, 12, 31, 23, 59, 59, 0, time.UTC)

// State is everything the control center knows at one revision, with the rows
// of Table 7 that follow from it. It is not safe for concurrent use; maps that
// its fields hold must not be changed but by [State.Apply].
type State struct {
	Rev             uint64
	GrantsVersion   uint64 // revision of the last change of the grants list
	PoliciesVersion uint64 // revision of the last change of the policies list

	GrantsSum   wire.Sum  // of Rows
	GrantsAt    time.Time // of GrantsVersion
	PoliciesSum wire.Sum  // of Policies and Locks
	PoliciesAt  time.Time // of PoliciesVersion

	Users       map[string]*User
	Parties     map[string]*Party // by their id
	Gateways    map[string]*Party // those of Parties that are gateways
	Apps        map[string]*App
	Grants      map[string]*Grant
	Policies    map[string]*wire.Policy
	Locks       map[LockRef]*Lock
	Sessions    map[Pair]*Session
	Subjects    map[string]*Subject // by their key
	Revocations map[string]*Revocation
	Rows        map[Pair]*Row
	Modified    map[string]uint64 // key → revision of its last change

	userNames    map[string]string // lower-case name → userId
	deviceParty  map[string]string // deviceId → id of its party
	grantsOf     map[string]map[string]*Grant
	onDevice     map[string]map[Pair]bool // live sessions
	ofUser       map[string]map[Pair]bool // live sessions
	browserToken func(userID string) string
	due          deadlines
}

// Change is what one transaction did to the lists.
type Change struct {
	Rev      uint64
	At       time.Time
	From, To uint64 // versions of the grants before and after
	Remove   []Pair
	Rows     []*Row // new or replaced; immutable
	Locks    []Lock
	Unlocks  []LockRef
	Revoke   []Revocation
	Renew    bool // the lists got a new version without a change
	Grants   bool // the grants list has a new version
	Policies bool // the policies list has a new version
	Faults   []string

	GrantsSum wire.Sum // of the rows after it
}

// Delta reports whether c is to be pushed as a delta of the grants.
func (c *Change) Delta() bool {
	return len(c.Remove)+len(c.Rows)+len(c.Locks)+len(c.Unlocks)+len(c.Revoke) > 0
}

// New returns the state that entries of the store give at revision rev. The
// rows of browsers carry the token that browserToken returns, which must be
// stable for a user.
func New(rev uint64, entries []store.Entry, now time.Time, browserToken func(userID string) string) (*State, []string) {
	s := &State{
		Users: map[string]*User{}, Parties: map[string]*Party{}, Apps: map[string]*App{}, Grants: map[string]*Grant{},
		Gateways: map[string]*Party{}, Policies: map[string]*wire.Policy{}, Locks: map[LockRef]*Lock{}, Sessions: map[Pair]*Session{},
		Subjects: map[string]*Subject{}, Revocations: map[string]*Revocation{}, Rows: map[Pair]*Row{}, Modified: map[string]uint64{},
		userNames: map[string]string{}, deviceParty: map[string]string{}, grantsOf: map[string]map[string]*Grant{},
		onDevice: map[string]map[Pair]bool{}, ofUser: map[string]map[Pair]bool{}, browserToken: browserToken,
	}
	ops := make([]store.Op, len(entries))
	for i, e := range entries {
		ops[i] = store.Put(e.Key, e.Value)
	}
	c := s.Apply(store.Batch{Rev: rev, Ops: ops}, now)
	for _, e := range entries {
		s.Modified[e.Key] = e.Modified
	}
	s.GrantsVersion, s.PoliciesVersion = rev, rev
	return s, c.Faults
}

// Apply brings s to the revision of b and returns what changed in the lists. A
// value that cannot be read counts as absent and is named in Faults.
func (s *State) Apply(b store.Batch, now time.Time) Change {
	c := Change{Rev: b.Rev, At: now, From: s.GrantsVersion}
	touched := map[Pair]bool{}
	for _, op := range b.Ops {
		if op.Delete {
			delete(s.Modified, op.Key)
		} else {
			s.Modified[op.Key] = b.Rev
		}
		if err := s.apply(op, &c, touched); err != nil {
			c.Faults = append(c.Faults, op.Key+": "+err.Error())
		}
	}
	s.Rev = b.Rev
	for pair := range touched {
		old, row := s.Rows[pair], s.row(pair, now)
		switch {
		case row == nil && old != nil:
			delete(s.Rows, pair)
			s.GrantsSum = s.GrantsSum.Sub(old.Sum)
			c.Remove = append(c.Remove, pair)
		case row != nil && (old == nil || !row.Equal(old)):
			s.Rows[pair] = row
			if old != nil {
				s.GrantsSum = s.GrantsSum.Sub(old.Sum)
			}
			row.Sum = row.sum()
			s.GrantsSum = s.GrantsSum.Add(row.Sum)
			c.Rows = append(c.Rows, row)
		}
	}
	slices.SortFunc(c.Remove, Pair.Compare)
	slices.SortFunc(c.Rows, func(a, b *Row) int { return a.Pair.Compare(b.Pair) })
	if c.Delta() || c.Renew {
		s.GrantsVersion, s.GrantsAt, c.Grants = b.Rev, now, true
	}
	if len(c.Locks)+len(c.Unlocks) > 0 || c.Renew {
		c.Policies = true
	}
	if c.Policies {
		s.PoliciesVersion, s.PoliciesAt = b.Rev, now
	}
	c.To, c.GrantsSum = s.GrantsVersion, s.GrantsSum
	return c
}

// apply brings one operation into the maps and marks the pairs whose rows it
// may concern.
func (s *State) apply(op store.Op, c *Change, touched map[Pair]bool) error {
	prefix, id, _ := strings.Cut(op.Key, "/")
	touch := func(pairs map[Pair]bool) { maps.Copy(touched, pairs) }
	touchUser := func(user string) {
		touch(s.ofUser[user])
		touched[Pair{user, Browser}] = true
	}
	switch prefix + "/" {
	case KeyUser:
		old := s.Users[id]
		err := set(s.Users, id, op)
		if old != nil && s.userNames[strings.ToLower(old.Name)] == id {
			delete(s.userNames, strings.ToLower(old.Name))
		}
		if u := s.Users[id]; u != nil {
			s.userNames[strings.ToLower(u.Name)] = id
		}
		touchUser(id)
		return err
	case KeyParty:
		old := s.Parties[id]
		err := set(s.Parties, id, op)
		for _, p := range []*Party{old, s.Parties[id]} {
			if p != nil && p.DeviceID != "" {
				delete(s.deviceParty, p.DeviceID)
				touch(s.onDevice[p.DeviceID])
			}
		}
		p := s.Parties[id]
		if p != nil && p.DeviceID != "" {
			s.deviceParty[p.DeviceID] = id
		}
		if delete(s.Gateways, id); p != nil && p.Kind == Gateway {
			s.Gateways[id] = p
		}
		return err
	case KeyApp:
		old := s.Apps[id]
		err := set(s.Apps, id, op)
		if (old == nil) != (s.Apps[id] == nil) {
			for _, g := range s.Grants {
				if slices.Contains(g.Apps, id) {
					touchUser(g.UserID)
				}
			}
		}
		return err
	case KeyGrant:
		old := s.Grants[id]
		err := set(s.Grants, id, op)
		if old != nil {
			delete(s.grantsOf[old.UserID], id)
			touchUser(old.UserID)
		}
		if g := s.Grants[id]; g != nil {
			index(s.grantsOf, g.UserID, id, g)
			touchUser(g.UserID)
			s.due.add(g.Until.Add(-EarlyEnd), op.Key, !g.Until.IsZero())
		}
		return err
	case KeySession:
		pair := pairOf(op.Key)
		err := set(s.Sessions, pair, op)
		if v := s.Sessions[pair]; v != nil {
			index(s.ofUser, pair.User, pair, true)
			index(s.onDevice, pair.Device, pair, true)
			s.due.add(v.end(), op.Key, true)
		} else {
			delete(s.ofUser[pair.User], pair)
			delete(s.onDevice[pair.Device], pair)
		}
		touched[pair] = true
		return err
	case KeyLock:
		return s.applyLock(op, id, c, touch, touchUser)
	case KeyPolicy:
		c.Policies = true
		if old := s.Policies[id]; old != nil {
			s.PoliciesSum = s.PoliciesSum.Sub(policySum(old))
		}
		err := set(s.Policies, id, op)
		if p := s.Policies[id]; p != nil {
			s.PoliciesSum = s.PoliciesSum.Add(policySum(p))
		}
		return err
	case KeySubject:
		return set(s.Subjects, op.Key, op)
	case KeyRevocation:
		err := set(s.Revocations, id, op)
		if r := s.Revocations[id]; r != nil {
			c.Revoke = append(c.Revoke, *r)
			s.due.add(r.Until, op.Key, true)
		}
		return err
	}
	if op.Key == KeyRefresh {
		c.Renew = true
	}
	return nil
}

func (s *State) applyLock(op store.Op, id string, c *Change, touch func(map[Pair]bool), touchUser func(string)) error {
	kind, what, _ := strings.Cut(id, "/")
	ref := LockRef{kind, what}
	if old := s.Locks[ref]; old != nil {
		s.PoliciesSum = s.PoliciesSum.Sub(old.sum())
	}
	err := set(s.Locks, ref, op)
	if l := s.Locks[ref]; l != nil {
		s.PoliciesSum = s.PoliciesSum.Add(l.sum())
		c.Locks = append(c.Locks, *l)
		s.due.add(l.Until, op.Key, !l.Until.IsZero())
	} else {
		c.Unlocks = append(c.Unlocks, ref)
	}
	switch kind {
	case "user":
		touchUser(what)
	case "device":
		touch(s.onDevice[what])
	case "agent":
		if p := s.Parties[what]; p != nil {
			touch(s.onDevice[p.DeviceID])
		}
	}
	return err
}

// row returns the row of pair, nil when it grants nothing.
func (s *State) row(pair Pair, now time.Time) *Row {
	user := s.Users[pair.User]
	if user == nil || s.Locks[LockRef{"user", pair.User}] != nil {
		return nil
	}
	r := &Row{Pair: pair, Expires: forever}
	if pair.Device == Browser {
		r.Token = s.browserToken(pair.User)
	} else {
		v, p := s.Sessions[pair], s.PartyOfDevice(pair.Device)
		switch {
		case v == nil || !now.Before(v.end()):
			return nil // nobody is authenticated there
		case p == nil || p.Kind != Agent || p.ID != v.AgentID || p.UserID != "" && p.UserID != pair.User:
			return nil
		case s.Locks[LockRef{"device", pair.Device}] != nil || s.Locks[LockRef{"agent", p.ID}] != nil:
			return nil
		}
		r.Token, r.Expires = v.Token, v.Expires
		r.Level, r.Factors, r.AuthTime, r.Posture, r.Risk = v.Level, v.Factors, v.AuthTime, cmp.Or(p.Posture, p.Seen), p.Risk
	}
	apps := map[string]bool{}
	for _, g := range s.grantsOf[pair.User] {
		if !g.covers(pair.Device, now) {
			continue
		}
		for _, a := range g.Apps {
			if s.Apps[a] != nil {
				apps[a] = true
			}
		}
		if !g.Until.IsZero() && g.Until.Before(r.Expires) {
			r.Expires = g.Until
		}
	}
	if len(apps) == 0 && pair.Device == Browser {
		return nil
	}
	// A device's row without applications stays: it lets the user's tunnel stand
	// and grants nothing.
	r.Apps = slices.Sorted(maps.Keys(apps))
	return r
}

// end returns when s stops to count.
func (v *Session) end() time.Time {
	if v.Ends.Before(v.Expires) {
		return v.Ends
	}
	return v.Expires
}

// UserByName returns the user who signs in as name, a name or a userId.
func (s *State) UserByName(name string) *User {
	if u := s.Users[s.userNames[strings.ToLower(name)]]; u != nil {
		return u
	}
	return s.Users[name]
}

// PartyOfDevice returns the party that has this device.
func (s *State) PartyOfDevice(deviceID string) *Party { return s.Parties[s.deviceParty[deviceID]] }

// SessionsOf returns the pairs on which user is authenticated.
func (s *State) SessionsOf(user string) []Pair {
	return slices.SortedFunc(maps.Keys(s.ofUser[user]), Pair.Compare)
}

// SessionsOn returns the pairs that are authenticated on device.
func (s *State) SessionsOn(device string) []Pair {
	return slices.SortedFunc(maps.Keys(s.onDevice[device]), Pair.Compare)
}

// GrantedApps returns what the row of pair grants, ascending.
func (s *State) GrantedApps(pair Pair) []*App {
	var apps []*App
	if r := s.Rows[pair]; r != nil {
		for _, id := range r.Apps {
			if a := s.Apps[id]; a != nil && s.Locks[LockRef{"app", id}] == nil {
				apps = append(apps, a)
			}
		}
	}
	return apps
}

// SortedRows returns every row in the order of the pairs.
func (s *State) SortedRows() []*Row {
	return slices.SortedFunc(maps.Values(s.Rows), func(a, b *Row) int { return a.Pair.Compare(b.Pair) })
}

// SortedLocks returns every lock, by kind and id.
func (s *State) SortedLocks() []*Lock {
	return slices.SortedFunc(maps.Values(s.Locks), func(a, b *Lock) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID))
	})
}

// Compare orders pairs by user, then device.
func (p Pair) Compare(o Pair) int {
	return cmp.Or(cmp.Compare(p.User, o.User), cmp.Compare(p.Device, o.Device))
}

func set[K comparable, V any](m map[K]*V, k K, op store.Op) error {
	delete(m, k)
	if op.Delete {
		return nil
	}
	v := new(V)
	if err := json.Unmarshal(op.Value, v); err != nil {
		return err
	}
	m[k] = v
	return nil
}

func index[K1, K2 comparable, V any](m map[K1]map[K2]V, k1 K1, k2 K2, v V) {
	if m[k1] == nil {
		m[k1] = map[K2]V{}
	}
	m[k1][k2] = v
}
