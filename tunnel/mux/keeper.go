package mux

import (
	"sync"
	"time"
)

// Keeper is the one timer of many sessions: it asks after silent peers. The
// timer runs while there are sessions. A Keeper may be used by several
// goroutines at once.
type Keeper struct {
	period time.Duration

	mu    sync.Mutex
	all   map[*Session]struct{} // guarded by mu
	timer *time.Timer           // guarded by mu; nil when there is no session
}

// silentTicks without a byte from the peer, and it is given up.
const silentTicks = 4

// NewKeeper returns a keeper that gives a peer up between 4/5 of timeout and
// timeout after its last byte.
func NewKeeper(timeout time.Duration) *Keeper {
	return &Keeper{period: timeout / (silentTicks + 1), all: map[*Session]struct{}{}}
}

func (k *Keeper) add(s *Session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.all[s] = struct{}{}
	if k.timer == nil {
		k.timer = time.AfterFunc(k.period, k.tick)
	}
}

func (k *Keeper) remove(s *Session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.all, s)
	if len(k.all) == 0 && k.timer != nil {
		k.timer.Stop()
		k.timer = nil
	}
}

// tick looks at every session. Nothing in it blocks.
func (k *Keeper) tick() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for s := range k.all {
		s.tick()
	}
	if k.timer != nil {
		k.timer.Reset(k.period)
	}
}
