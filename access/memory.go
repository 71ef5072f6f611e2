package access

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/reason"
)

// rotationTable remembers tokens that a newer one of the same (user, device)
// has replaced. It is asked only when a token is not in the list.
type rotationTable struct {
	n  atomic.Int64 // entries, so that an empty table costs nothing
	mu sync.Mutex
	m  map[[16]byte]rotation // guarded by mu
}

type rotation struct {
	user, device string
	until        time.Time
}

// rotationMemory is how long a replaced token is remembered at all, to tell an
// old token from a wrong one.
const rotationMemory = 10 * time.Minute

func (t *rotationTable) add(list []policy.Rotation, now time.Time) {
	if len(list) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range list {
		if old, ok := t.m[r.TokenMac]; ok && old.until.Before(now) {
			continue // it was replaced before, its time is over
		}
		t.m[r.TokenMac] = rotation{r.UserID, r.DeviceID, earlier(r.Expires, now.Add(RotationGrace))}
	}
	t.n.Store(int64(len(t.m)))
}

// find returns until when the token of sub still counts, or why it does not.
func (t *rotationTable) find(sub *policy.Subject, now time.Time) (time.Time, reason.Reason) {
	if t.n.Load() == 0 {
		return time.Time{}, reason.TokenUnknown
	}
	t.mu.Lock()
	r, ok := t.m[sub.TokenMac()]
	t.mu.Unlock()
	f := sub.Identity()
	switch {
	case !ok:
		return time.Time{}, reason.TokenUnknown
	case r.device != f.DeviceID:
		return time.Time{}, reason.TokenOtherDevice
	case r.user != f.UserID:
		return time.Time{}, reason.UserMismatch
	case !now.Before(r.until):
		return time.Time{}, reason.TokenExpired
	}
	return r.until, reason.OK
}

func (t *rotationTable) sweep(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, r := range t.m {
		if now.Sub(r.until) > rotationMemory {
			delete(t.m, k)
		}
	}
	t.n.Store(int64(len(t.m)))
}

// revocations remembers sessions that must not come back. When it is full, the
// oldest entries give way to a floor: every sign-in before it counts as
// revoked, so forgetting never opens anything.
type revocations struct {
	keep time.Duration
	mu   sync.Mutex
	ids  map[string]time.Time // when revoked; guarded by mu
	user map[string]time.Time // issued before; guarded by mu
	low  time.Time            // the floor; guarded by mu
}

const maxRevocations = 200_000

func (t *revocations) init(keep time.Duration) {
	t.keep, t.ids, t.user = keep, map[string]time.Time{}, map[string]time.Time{}
}

func (t *revocations) addSession(id string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.ids) >= maxRevocations {
		t.raiseFloor(t.ids)
	}
	t.ids[id] = now
}

func (t *revocations) addUser(user string, before time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.user) >= maxRevocations {
		t.raiseFloor(t.user)
	}
	if before.After(t.user[user]) {
		t.user[user] = before
	}
}

// raiseFloor drops the older half of m and refuses what it stood for by time.
func (t *revocations) raiseFloor(m map[string]time.Time) {
	var sum, n int64
	for _, at := range m {
		sum += at.Unix() / 1024
		n++
	}
	middle := time.Unix(sum/max(n, 1)*1024+1024, 0)
	for k, at := range m {
		if !at.After(middle) {
			delete(m, k)
		}
	}
	if middle.After(t.low) {
		t.low = middle
	}
}

// check returns SessionRevoked for a session that was.
func (t *revocations) check(id, user string, issued time.Time) reason.Reason {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.ids[id]; ok {
		return reason.SessionRevoked
	}
	if _, ok := t.ids[whole(id)]; ok {
		return reason.SessionRevoked
	}
	if before, ok := t.user[user]; ok && issued.Before(before) {
		return reason.SessionRevoked
	}
	if issued.Before(t.low) {
		return reason.SessionRevoked
	}
	return reason.OK
}

func (t *revocations) sweep(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range []map[string]time.Time{t.ids, t.user} {
		for k, at := range m {
			if now.Sub(at) > t.keep {
				delete(m, k)
			}
		}
	}
}

// Revocations returns what is remembered, so that it can be stored and given to
// Narrow after a restart.
func (a *Access) Revocations() []Revocation {
	t := &a.revoked
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Revocation, 0, len(t.ids)+len(t.user))
	for id := range t.ids {
		out = append(out, Revocation{SessionID: id})
	}
	for user, before := range t.user {
		out = append(out, Revocation{UserID: user, IssuedBefore: before})
	}
	return out
}

// guessTable counts wrong tokens of each device certificate (S3).
type guessTable struct {
	most int
	mu   sync.Mutex
	m    map[string]*guesses // by device; guarded by mu
}

type guesses struct {
	since time.Time
	n     int
}

const (
	guessWindow = time.Minute
	maxGuessers = 65_536 // devices with a certificate; beyond, all share one entry
)

func (t *guessTable) init(most int) { t.most, t.m = most, map[string]*guesses{} }

// mayTry reports whether the device may show a token now.
func (t *guessTable) mayTry(device string, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.m[device]
	if g == nil && len(t.m) >= maxGuessers {
		g = t.m[""]
	}
	if g == nil {
		return true
	}
	if now.Sub(g.since) >= guessWindow {
		return true
	}
	return g.n < t.most
}

// miss counts a wrong token and reports whether it was the one that used up the
// minute's allowance.
func (t *guessTable) miss(device string, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.m[device]
	if g == nil {
		if len(t.m) >= maxGuessers {
			device = ""
		}
		if g = t.m[device]; g == nil {
			g = &guesses{since: now}
			t.m[device] = g
		}
	}
	if now.Sub(g.since) >= guessWindow {
		g.since, g.n = now, 0
	}
	g.n++
	return g.n == t.most
}

func (t *guessTable) sweep(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, g := range t.m {
		if now.Sub(g.since) >= guessWindow {
			delete(t.m, k)
		}
	}
}
