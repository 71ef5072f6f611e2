package policy

import (
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// Builder makes a [Snapshot] from pages of rows as they arrive, or from an
// older snapshot and a delta ([Snapshot.Edit]). Parsing and indexing happen in
// AddPage, so Finish only compiles the policies. A Builder is for one
// goroutine; after Finish it must not be used again.
type Builder struct {
	s      *Snapshot // under construction
	apps   map[id]uint32
	shared bool                // apps is still the snapshot's that is edited
	sets   map[uint64][]uint32 // by hash; only within this builder
	prev   *Snapshot           // whose tokens may have been rotated; may be nil
	old    rotations
	faults []Fault
	row    int // of the list
	dirty  bool
	done   bool
	ids    []uint32 // scratch

	appList  []App
	policies []wire.Policy
	ceiling  []wire.Policy
	locks    []Lock
	bad      []BadRow
}

type rotations []Rotation

// Rotation is a token that a newer row of the same (user, device) replaced.
type Rotation struct {
	TokenMac         [16]byte // of the old token, see [Subject.TokenMac]
	UserID, DeviceID string
	Expires          time.Time // of the old row
}

// maxGrantFaults bounds what a list of nothing but bad rows can cost.
const maxGrantFaults = 1000

// NewBuilder returns a builder without rows. prev is the snapshot in force, to
// notice rotated tokens, or nil; with prev the key is prev's.
func NewBuilder(key *TokenKey, prev *Snapshot) *Builder {
	if prev != nil {
		key = prev.key
	}
	if key == nil {
		key = NewTokenKey()
	}
	b := &Builder{apps: map[id]uint32{}, sets: map[uint64][]uint32{}, prev: prev, dirty: true}
	b.s = &Snapshot{key: key, apps: make([]appRow, 1)} // application 0 is unknown
	b.s.setOff = []uint32{0, 0}                        // set 0 is empty
	b.SetBrowserDevice("")
	b.SetNotAfter(time.Time{})
	b.Grow(0)
	return b
}

// Edit returns a builder that starts from s: rows, applications, policies and
// locks stay unless they are changed. s itself does not change.
func (s *Snapshot) Edit() *Builder {
	c := *s
	b := &Builder{
		s: &c, apps: s.appIndex, shared: true, sets: map[uint64][]uint32{}, prev: s,
		appList: s.appList, policies: s.policies, ceiling: s.ceiling, locks: s.locks, bad: s.bad,
	}
	c.rows.chunks = slices.Clone(s.rows.chunks)
	c.byPair.pages = slices.Clone(s.byPair.pages)
	c.byToken.pages = slices.Clone(s.byToken.pages)
	c.apps = slices.Clip(s.apps)
	c.setOff = slices.Clip(s.setOff)
	c.setApps = slices.Clip(s.setApps)
	c.rotated = nil
	return b
}

// Renew returns a builder without rows whose applications, policies, ceiling
// and locks are those of s, for the pages of the next full list.
func (s *Snapshot) Renew() *Builder {
	b := NewBuilder(s.key, s)
	b.SetBrowserDevice(s.browserName)
	b.appList, b.policies, b.ceiling, b.locks, b.bad = s.appList, s.policies, s.ceiling, s.locks, s.bad
	b.s.policyVersion, b.s.notAfter = s.policyVersion, s.notAfter
	return b
}

// Grow makes room for n rows in all.
func (b *Builder) Grow(n int) {
	b.rehash(max(n, int(b.s.live)))
}

func (b *Builder) rehash(n int) {
	s := b.s
	s.byPair, s.byToken = newIndex(b, n+n/4+1), newIndex(b, n+n/4+1)
	for i := range s.rows.n {
		if g := s.rows.at(i); g.flags&rowDead == 0 {
			s.byPair.insert(b, s.key.hash(g.pair), i)
			if g.flags&rowBrowser == 0 {
				s.byToken.insert(b, g.mac.hash(), i)
			}
		}
	}
}

// SetBrowserDevice sets the deviceId of the browser class; "" is the default.
// It must be set before rows are added.
func (b *Builder) SetBrowserDevice(deviceID string) {
	if deviceID == "" {
		deviceID = BrowserDevice
	}
	if d, ok := makeID(deviceID); ok {
		b.s.browser, b.s.browserName = d, deviceID
	}
}

// SetApps sets the applications of the configuration.
func (b *Builder) SetApps(apps []App) { b.appList, b.dirty = slices.Clone(apps), true }

// SetPolicies sets the control center's policies. bad are the rows that could
// not be decoded.
func (b *Builder) SetPolicies(policies []wire.Policy, bad []BadRow, version uint64) {
	b.policies, b.bad, b.dirty = slices.Clone(policies), slices.Clone(bad), true
	b.s.policyVersion = version
}

// SetCeiling sets the policies of the local configuration.
func (b *Builder) SetCeiling(policies []wire.Policy) {
	b.ceiling, b.dirty = slices.Clone(policies), true
}

// SetLocks sets the locks in force.
func (b *Builder) SetLocks(locks []Lock) { b.locks, b.dirty = slices.Clone(locks), true }

// SetVersion sets the version of the grants.
func (b *Builder) SetVersion(v uint64) { b.s.version = v }

// SetNotAfter sets the end of the lists; zero is no end.
func (b *Builder) SetNotAfter(t time.Time) {
	b.s.notAfter = nanos(t)
	if t.IsZero() {
		b.s.notAfter = never
	}
}

// SetNoList says whether no list has arrived yet.
func (b *Builder) SetNoList(no bool) { b.s.noList = no }

// AddPage adds the rows of a page of the list. Rows that cannot be taken become
// faults of Finish.
func (b *Builder) AddPage(page []Row) {
	for i := range page {
		b.add(&page[i], false)
	}
}

// Put replaces the row of its (user, device), or adds it: a row of a delta. A
// row that cannot be taken removes the old one, because that is no longer what
// the control center means.
func (b *Builder) Put(r Row) { b.add(&r, true) }

// Remove takes the row of (userID, deviceID) out.
func (b *Builder) Remove(userID, deviceID string) {
	p, err := makePair(userID, deviceID)
	if err != nil {
		return // no row can have it
	}
	hash := b.s.key.hash(p)
	if i, g := b.s.rows.findPair(&b.s.byPair, hash, &p); g != nil {
		b.s.byPair.remove(b, hash, i)
		b.s.byToken.remove(b, g.mac.hash(), i)
		g = b.s.rows.edit(b, i)
		g.flags = rowDead
		b.s.grantSum = b.s.grantSum.Sub(*b.s.rows.sum(i))
		b.s.live--
	}
}

func makePair(userID, deviceID string) (p pair, err error) {
	var okU, okD bool
	p.user, okU = makeID(userID)
	p.device, okD = makeID(deviceID)
	if !okU {
		return p, fmt.Errorf("userId %q is not 1 to 11 printable characters", userID)
	}
	if !okD {
		return p, fmt.Errorf("deviceId %q is not 1 to 11 printable characters", deviceID)
	}
	return p, nil
}

// parse reads r into g, all but its set.
func (b *Builder) parse(r *Row, g *grant) error {
	var err error
	if g.pair, err = makePair(r.UserID, r.DeviceID); err != nil {
		return err
	}
	if _, ok := makeID(r.AuthenticationToken); !ok {
		return errors.New("authenticationToken is not 1 to 11 printable characters")
	}
	end, err := parseExpiry(r.ExpirationDate)
	if err != nil {
		return fmt.Errorf("expirationDate %q is no time (YYYY-MM-DDThh:mm:ssZ)", r.ExpirationDate)
	}
	g.expires = secondsOf(end)
	if r.Level < 0 || r.Level > 1000 {
		return fmt.Errorf("level %d is not 0 to 1000", r.Level)
	}
	g.mac = b.s.key.mac(r.AuthenticationToken)
	g.authTime = secondsOf(nanos(r.AuthTime))
	g.level, g.factors, g.posture, g.risk = int16(r.Level), r.Factors, r.Posture, r.Risk
	b.ids = b.ids[:0]
	for _, a := range r.AppIDList {
		d, ok := makeID(a)
		if !ok {
			return fmt.Errorf("appId %q is not 1 to 11 printable characters", a)
		}
		b.ids = append(b.ids, b.app(d))
	}
	if g.pair.device == b.s.browser {
		g.flags |= rowBrowser
	}
	return nil
}

func (b *Builder) fault(r *Row, err error) {
	if len(b.faults) < maxGrantFaults {
		b.faults = append(b.faults, Fault{Grant: true, Index: b.row, UserID: r.UserID, DeviceID: r.DeviceID, Reason: reason.ListBadRow, Err: err})
	}
	b.s.badRows++
}

func (b *Builder) add(r *Row, replace bool) {
	defer func() { b.row++ }()
	s := b.s
	var g grant
	if err := b.parse(r, &g); err != nil {
		b.fault(r, err)
		if replace {
			b.Remove(r.UserID, r.DeviceID)
		}
		return
	}
	hash := s.key.hash(g.pair)
	i, old := s.rows.findPair(&s.byPair, hash, &g.pair)
	if old != nil && !replace { // twice in one list
		g.set = b.set(b.ids, nil)
		if old.flags&rowConflict != 0 || !sameRow(old, &g) {
			s.rows.edit(b, i).flags |= rowConflict
			b.fault(r, errPairTwice)
		}
		return
	}
	g.set = b.set(b.ids, old)
	b.rotate(hash, &g)
	if old != nil {
		s.byToken.remove(b, old.mac.hash(), i)
		*s.rows.edit(b, i) = g
		s.grantSum = s.grantSum.Sub(*s.rows.sum(i))
	} else {
		if s.byPair.full() || s.byToken.full() {
			b.rehash(2 * (int(s.live) + 1))
		}
		var to *grant
		i, to = s.rows.add(b)
		*to = g
		s.byPair.insert(b, hash, i)
		s.live++
	}
	*s.rows.sum(i) = r.Sum
	s.grantSum = s.grantSum.Add(r.Sum)
	if g.flags&rowBrowser != 0 {
		return
	}
	if j, other := s.rows.findToken(&s.byToken, &g.mac); other != nil {
		s.rows.edit(b, i).flags |= rowTokenBad
		s.rows.edit(b, j).flags |= rowTokenBad
		b.fault(r, errTokenTwice)
	}
	if s.byToken.full() {
		b.rehash(2 * (int(s.live) + 1)) // takes row i in, too
		return
	}
	s.byToken.insert(b, g.mac.hash(), i)
}

// sameRow reports whether two rows of one pair say the same.
func sameRow(a, b *grant) bool {
	x, y := *a, *b
	x.flags, y.flags = 0, 0
	return x == y
}

// rotate notes that g replaces the token of the row in force.
func (b *Builder) rotate(hash uint64, g *grant) {
	if b.prev == nil || g.flags&rowBrowser != 0 {
		return
	}
	_, old := b.prev.rows.findPair(&b.prev.byPair, hash, &g.pair)
	if old != nil && old.mac != g.mac && old.flags&(rowConflict|rowTokenBad) == 0 {
		b.old = append(b.old, Rotation{old.mac, g.pair.user.String(), g.pair.device.String(), instant(old.expires.nanos())})
	}
}

// app returns the number of an application, registered here or not.
func (b *Builder) app(d id) uint32 {
	n, ok := b.apps[d]
	if !ok {
		if b.shared {
			b.apps, b.shared = maps.Clone(b.apps), false
		}
		n = uint32(len(b.s.apps))
		b.apps[d] = n
		b.s.apps = append(b.s.apps, appRow{id: d, name: d.String(), lock: -1})
	}
	return n
}

// set returns the number of the set of applications ids, which it sorts. near
// is a row that is likely to have the same one.
func (b *Builder) set(ids []uint32, near *grant) uint32 {
	s := b.s
	if len(ids) == 0 {
		return 0
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	if near != nil && slices.Equal(s.set(near.set), ids) {
		return near.set
	}
	var h maphash.Hash
	h.SetSeed(s.key.seed)
	for _, n := range ids {
		h.Write([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
	}
	sum := h.Sum64()
	for _, k := range b.sets[sum] {
		if slices.Equal(s.set(k), ids) {
			return k
		}
	}
	k := uint32(len(s.setOff) - 1)
	s.setApps = append(s.setApps, ids...)
	s.setOff = append(s.setOff, uint32(len(s.setApps)))
	b.sets[sum] = append(b.sets[sum], k)
	return k
}

// compactSets drops sets that no row has any more.
func (b *Builder) compactSets() {
	s := b.s
	old := Snapshot{setOff: s.setOff, setApps: s.setApps}
	s.setOff, s.setApps, b.sets = []uint32{0, 0}, nil, map[uint64][]uint32{}
	to := make([]uint32, len(old.setOff))
	for i := range s.rows.n {
		if k := s.rows.at(i).set; k != 0 {
			if to[k] == 0 {
				to[k] = b.set(slices.Clone(old.set(k)), nil)
			}
			s.rows.edit(b, i).set = to[k]
		}
	}
}

// compactRows drops dead rows.
func (b *Builder) compactRows() {
	s := b.s
	old := s.rows
	s.rows = rows{}
	for i := range old.n {
		if g := old.at(i); g.flags&rowDead == 0 {
			n, to := s.rows.add(b)
			*to = *g
			*s.rows.sum(n) = *old.sum(i)
		}
	}
	b.rehash(int(s.live))
}

// Finish compiles the policies and returns the snapshot, and the rows that
// could not be taken as they stand.
func (b *Builder) Finish() (*Snapshot, []Fault) {
	if b.done {
		panic("policy: Builder used after Finish")
	}
	b.done = true
	s := b.s
	s.serial = snapshots.Add(1)
	if s.rows.n > 2*s.live+4096 {
		b.compactRows()
	}
	if len(s.setOff) > 2*int(s.live)+4096 {
		b.compactSets()
	}
	if b.dirty {
		s.appList, s.policies, s.ceiling, s.locks, s.bad = b.appList, b.policies, b.ceiling, b.locks, b.bad
		b.compile()
		s.policySum = policySum(s.policies, s.locks)
	}
	s.appIndex = b.apps
	s.rotated = b.old
	faults := slices.Concat(b.faults, s.policyFaults)
	// Chunks and pages know the builder that may write them, for as long as some
	// snapshot has them: it must not hold what it was made of.
	*b = Builder{done: true}
	return s, faults
}

// policySum hashes policies and locks as their list has them.
func policySum(policies []wire.Policy, locks []Lock) (sum wire.Sum) {
	for i := range policies {
		sum = sum.Add(wire.RowSum(wire.PolicyDigest(&policies[i])))
	}
	for _, l := range locks {
		row := wire.LockRow{Kind: l.Kind, ID: l.ID, Message: l.Message}
		if !l.Until.IsZero() {
			row.Until = wire.FormatTime(l.Until)
		}
		sum = sum.Add(wire.RowSum(wire.LockDigest(&row)))
	}
	return sum
}

// Build makes a snapshot of in. For large lists a [Builder] fed page by page
// leaves less work to the end.
func Build(in Input) (*Snapshot, []Fault) { return BuildAfter(in, nil) }

// BuildAfter is Build that also notes which tokens of prev were rotated.
func BuildAfter(in Input, prev *Snapshot) (*Snapshot, []Fault) {
	b := NewBuilder(in.Key, prev)
	b.SetBrowserDevice(in.BrowserDevice)
	b.Grow(len(in.Grants))
	b.SetApps(in.Apps)
	b.SetPolicies(in.Policies, in.BadPolicies, in.PolicyVersion)
	b.SetCeiling(in.Ceiling)
	b.SetLocks(in.Locks)
	b.SetVersion(in.Version)
	b.SetNotAfter(in.NotAfter)
	b.SetNoList(in.NoList)
	b.AddPage(in.Grants)
	return b.Finish()
}
