package login

import (
	"sync"
	"time"
)

// once remembers which hand-over codes were used until they have expired. It
// is bounded: when it is full, new codes are refused rather than old ones
// forgotten.
type once struct {
	mu   sync.Mutex
	used map[string]time.Time // code's identifier → its expiry; guarded by mu
}

const maxCodes = 100_000

// take reports whether id is used for the first time.
func (o *once) take(id string, expiry, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.used == nil {
		o.used = map[string]time.Time{}
	}
	if _, again := o.used[id]; again {
		return false
	}
	if len(o.used) >= maxCodes/2 {
		for k, e := range o.used {
			if now.After(e) {
				delete(o.used, k)
			}
		}
		if len(o.used) >= maxCodes {
			return false
		}
	}
	o.used[id] = expiry
	return true
}
