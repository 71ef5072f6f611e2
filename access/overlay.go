package access

import (
	"maps"
	"slices"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/reason"
)

// overlay is what was narrowed since the snapshot in force was built. It only
// denies, is immutable, and goes when a list that knows of it is in force.
type overlay struct {
	pairs   map[Pair]narrowedAt
	locks   []lockOverlay
	browser string // deviceId of the browser class
}

// narrowedAt tells which list knows of an entry.
type narrowedAt struct {
	version uint64 // of the grants that follow it; 0: unknown
	seq     uint64 // of the Narrow
}

type lockOverlay struct {
	lock          policy.Lock
	app           App
	policyVersion uint64 // in force when it came
	at            time.Time
}

// lockHandOver is how long a lock that came by Narrow is kept against policies
// that do not name it: they may be older than the lock. The lists are pulled at
// least every 60 s.
const lockHandOver = 2 * time.Minute

// deny answers what the overlay alone denies.
func (o *overlay) deny(sub *policy.Subject, app App, now time.Time) policy.Decision {
	f := sub.Identity()
	device := f.DeviceID
	if f.Browser {
		device = o.browser
	}
	for i := range o.locks {
		l := &o.locks[i]
		if !l.lock.Until.IsZero() && !now.Before(l.lock.Until) {
			continue
		}
		var held bool
		switch l.lock.Kind {
		case "user":
			held = f.UserID == l.lock.ID
		case "device":
			held = device == l.lock.ID
		case "agent":
			held = f.AgentID == l.lock.ID
		case "session":
			held = f.SessionID == l.lock.ID || whole(f.SessionID) == l.lock.ID
		case "app":
			held = app == l.app && app.n != 0
		default: // a kind that is not known holds for every one
			held = slices.Contains([]string{f.UserID, device, f.AgentID, f.SessionID, whole(f.SessionID)}, l.lock.ID) || app == l.app && app.n != 0
		}
		if held {
			return policy.Decision{Reason: reason.Locked, Message: l.lock.Message}
		}
	}
	if len(o.pairs) != 0 {
		if _, ok := o.pairs[Pair{f.UserID, device}]; ok {
			return policy.Decision{Reason: reason.GrantRevoked}
		}
	}
	return policy.Decision{}
}

// with returns o and what d takes away.
func (o *overlay) with(d Delta, seq uint64, snap *policy.Snapshot, now time.Time, handles map[string]App) *overlay {
	_, policyVersion := snap.Version()
	n := &overlay{pairs: map[Pair]narrowedAt{}, browser: snap.BrowserDevice()}
	if o != nil {
		n.pairs = maps.Clone(o.pairs)
		n.locks = slices.Clone(o.locks)
	}
	for _, p := range d.Remove {
		n.pairs[p] = narrowedAt{d.To, seq}
	}
	same := func(l policy.Lock) func(lockOverlay) bool {
		return func(h lockOverlay) bool { return h.lock.Kind == l.Kind && h.lock.ID == l.ID }
	}
	for _, l := range d.Unlocks {
		n.locks = slices.DeleteFunc(n.locks, same(l))
	}
	for _, l := range d.Locks {
		n.locks = slices.DeleteFunc(n.locks, same(l))
		n.locks = append(n.locks, lockOverlay{l, handles[l.ID], policyVersion, now})
	}
	return n.orNil()
}

// after returns what of o still stands when snap comes into force. narrowed is
// the number of Narrow calls that were over when snap was begun.
func (o *overlay) after(snap *policy.Snapshot, narrowed uint64, now time.Time) *overlay {
	if o == nil {
		return nil
	}
	version, policyVersion := snap.Version()
	n := &overlay{pairs: map[Pair]narrowedAt{}, browser: snap.BrowserDevice()}
	for p, at := range o.pairs {
		known := at.version <= version
		if at.version == 0 {
			known = at.seq <= narrowed
		}
		if !known {
			n.pairs[p] = at
		}
	}
	locks := snap.Locks()
	for _, l := range o.locks {
		handed := slices.ContainsFunc(locks, func(s policy.Lock) bool { return s.Kind == l.lock.Kind && s.ID == l.lock.ID })
		superseded := policyVersion > l.policyVersion && now.Sub(l.at) >= lockHandOver
		over := !l.lock.Until.IsZero() && !now.Before(l.lock.Until)
		if !handed && !superseded && !over {
			n.locks = append(n.locks, l)
		}
	}
	return n.orNil()
}

func (o *overlay) orNil() *overlay {
	if len(o.pairs) == 0 && len(o.locks) == 0 {
		return nil
	}
	return o
}
