package access

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
)

// usage counts what one user does on one application, in all sessions. It
// outlives snapshots: a new list does not give anybody a fresh start.
type usage struct {
	key    usageKey
	refs   int          // sessions; guarded by the shard's lock
	active atomic.Int64 // leases that are pending or live

	mu      sync.Mutex
	buckets []bucket // guarded by mu
}

type usageKey struct {
	user string
	app  App
}

// bucket is the state of one rate policy: the theoretical arrival time of the
// generic cell rate algorithm.
type bucket struct {
	policyID string
	ceiling  bool
	tat      int64 // unix nanoseconds
}

// take counts one request against every rate of lim, or none of them. It
// returns the policy that refuses.
func (u *usage) take(lim *policy.Limits, now time.Time) (policyID string, ok bool) {
	t := now.UnixNano()
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, rates := range lim.Rates {
		for i := range rates {
			r := &rates[i]
			b := u.bucket(r, t)
			if max(b.tat, t)+int64(r.Interval)-t > int64(r.Interval)*int64(r.Burst) {
				return r.PolicyID, false
			}
		}
	}
	for _, rates := range lim.Rates {
		for i := range rates {
			b := u.bucket(&rates[i], t)
			b.tat = max(b.tat, t) + int64(rates[i].Interval)
		}
	}
	return "", true
}

func (u *usage) bucket(r *policy.RateLimit, now int64) *bucket {
	free := -1
	for i := range u.buckets {
		b := &u.buckets[i]
		if b.policyID == r.PolicyID && b.ceiling == r.Ceiling {
			return b
		}
		if b.tat < now {
			free = i
		}
	}
	if free >= 0 && len(u.buckets) >= 16 {
		u.buckets[free] = bucket{r.PolicyID, r.Ceiling, 0}
		return &u.buckets[free]
	}
	u.buckets = append(u.buckets, bucket{r.PolicyID, r.Ceiling, 0})
	return &u.buckets[len(u.buckets)-1]
}

// spent reports whether a rate still counts against the user.
func (u *usage) spent(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, b := range u.buckets {
		if b.tat > now.UnixNano() {
			return true
		}
	}
	return false
}

// usageTable finds usages. An entry lives while a session refers to it or one
// of its rates still counts.
type usageTable struct {
	seed   maphash.Seed
	shards [64]struct {
		mu sync.Mutex
		m  map[usageKey]*usage // guarded by mu
		_  [40]byte
	}
}

func (t *usageTable) init() {
	t.seed = maphash.MakeSeed()
	for i := range t.shards {
		t.shards[i].m = map[usageKey]*usage{}
	}
}

// of returns the usage of s on app. s.mu is held.
func (t *usageTable) of(s *Session, app App) *usage {
	for _, u := range s.usages {
		if u.key.app == app {
			return u
		}
	}
	k := usageKey{s.subject.Load().Identity().UserID, app}
	sh := &t.shards[maphash.String(t.seed, k.user)%uint64(len(t.shards))]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	u := sh.m[k]
	if u == nil {
		u = &usage{key: k}
		sh.m[k] = u
	}
	u.refs++
	s.usages = append(s.usages, u)
	return u
}

// unref drops a session's reference.
func (t *usageTable) unref(u *usage, now time.Time) {
	sh := &t.shards[maphash.String(t.seed, u.key.user)%uint64(len(t.shards))]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	u.refs--
	if u.refs == 0 && !u.spent(now) {
		delete(sh.m, u.key)
	}
}

// sweep drops entries that nothing refers to any more.
func (t *usageTable) sweep(now time.Time) {
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		for k, u := range sh.m {
			if u.refs == 0 && !u.spent(now) {
				delete(sh.m, k)
			}
		}
		sh.mu.Unlock()
	}
}
