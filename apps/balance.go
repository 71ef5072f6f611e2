package apps

import (
	"hash/fnv"
	"time"
)

// Pick returns the upstream for one use, and counts the use: the caller must
// call Report once it knows what came of it, and Release at its end. kinds are
// the schemes that serve. With `balance: consistent_hash` uses of one key have
// one upstream, while that is in order.
//
// Upstreams that checks found down are never picked. Those that failed lately
// are passed over while another is left; when none is, one of them is tried
// all the same. It returns nil when there is none.
func (a *App) Pick(now time.Time, key string, kinds ...string) *Upstream {
	u, try := a.pick(now.UnixNano(), key, kinds, false)
	for try && !u.trial.CompareAndSwap(false, true) { // somebody else tries it
		u, try = a.pick(now.UnixNano(), key, kinds, false)
	}
	if u == nil {
		u, _ = a.pick(now.UnixNano(), key, kinds, true)
	}
	if u != nil {
		u.active.Add(1)
	}
	return u
}

func (a *App) pick(now int64, key string, kinds []string, ejectedToo bool) (best *Upstream, try bool) {
	n := len(a.Upstreams)
	start := 0
	if n > 1 && a.balance != consistentHash {
		start = int(a.next.Add(1) % uint64(n))
	}
	var most uint64
	for i := range n {
		u := a.Upstreams[(start+i)%n]
		if !u.is(kinds) {
			continue
		}
		ok, trying := u.usable(now)
		if !ok && (!ejectedToo || u.down.Load()) {
			continue
		}
		if trying && !ejectedToo && a.balance != consistentHash {
			return u, true // one use pays to learn whether it is back
		}
		switch a.balance {
		case roundRobin:
			return u, false
		case consistentHash:
			if w := mix(u.place, key); best == nil || w > most {
				best, most, try = u, w, trying
			}
		default:
			if best == nil || u.active.Load() < best.active.Load() {
				best = u
			}
		}
	}
	return best, try
}

func (u *Upstream) is(kinds []string) bool {
	for _, k := range kinds {
		if u.Scheme == k {
			return true
		}
	}
	return false
}

// placeOf is where an upstream stands on the ring: the same in every gateway of
// a site, whatever the order of its configuration.
func placeOf(url string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(url)) // never fails
	return h.Sum64()
}

// mix weighs an upstream for a key: the heaviest has it (rendezvous hashing), so
// that an upstream that goes takes only its own keys with it.
func mix(place uint64, key string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(key) {
		h = (h ^ uint64(key[i])) * 1099511628211
	}
	h ^= place
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// Sticky reports whether the application wants a key for Pick.
func (a *App) Sticky() bool { return a.balance == consistentHash }

// Down reports whether active checks have found every upstream of these kinds
// down.
func (a *App) Down(kinds ...string) bool {
	some := false
	for _, u := range a.Upstreams {
		if u.is(kinds) {
			if !u.down.Load() {
				return false
			}
			some = true
		}
	}
	return some
}

// Enter counts a request to the application that came at now. It reports false,
// and counts nothing, when max_requests are in hand. The caller must call Leave
// after.
func (a *App) Enter(now time.Time) bool {
	if a.inHand.Add(1) > a.maxRequests {
		a.inHand.Add(-1)
		return false
	}
	a.meter.count(now)
	return true
}

// Leave ends what Enter began.
func (a *App) Leave() { a.inHand.Add(-1) }

// InHand returns how many requests are between Enter and Leave.
func (a *App) InHand() int64 { return a.inHand.Load() }
