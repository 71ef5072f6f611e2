// Package watch ends what takes too long, for things of which there are very
// many: arming an [Alarm] is one atomic store, where a timer costs a lock and a
// place in a heap. Alarms are coarse: they ring up to three ticks late, never
// early.
package watch

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Tick is the resolution of a [Watch].
const Tick = 100 * time.Millisecond

// Watch looks at its alarms once a tick, while it runs. Make one with [New].
type Watch struct {
	now atomic.Int64 // time since start, at the last tick

	mu     sync.Mutex
	alarms []*Alarm // guarded by mu
}

// Alarm calls a function when it has been armed for too long. The zero value
// is ready for [Watch.Add]; it must not be copied afterwards. Arm and Disarm
// may be called from any goroutine.
type Alarm struct {
	w    *Watch
	at   atomic.Int64 // 0: not armed
	ring func()
	pos  int // in w.alarms; guarded by w.mu
}

// New returns a watch that looks at nothing before Run.
func New() *Watch {
	w := &Watch{}
	w.now.Store(1)
	return w
}

// Now returns the time since Run began, at its last look.
func (w *Watch) Now() time.Duration { return time.Duration(w.now.Load()) }

// Add makes w look at a. ring is called on the watch's goroutine and must not
// block; it may come a moment after a Disarm that reports false.
func (w *Watch) Add(a *Alarm, ring func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a.w, a.ring, a.pos = w, ring, len(w.alarms)
	w.alarms = append(w.alarms, a)
}

// Remove ends what Add began. A second call has no effect.
func (w *Watch) Remove(a *Alarm) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a.at.Store(0)
	last := len(w.alarms) - 1
	if a.pos > last || w.alarms[a.pos] != a {
		return
	}
	w.alarms[a.pos] = w.alarms[last]
	w.alarms[a.pos].pos = a.pos
	w.alarms[last] = nil
	w.alarms = w.alarms[:last]
}

// Arm lets a ring when d has passed, instead of any time before.
func (a *Alarm) Arm(d time.Duration) { a.at.Store(a.w.now.Load() + int64(d+Tick)) }

// Disarm silences a. It reports false when a was not armed, or has gone off:
// its function was called, or is about to be.
func (a *Alarm) Disarm() bool { return a.at.Swap(0) != 0 }

// Run looks at the alarms until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	t := time.NewTicker(Tick)
	defer t.Stop()
	start := time.Now()
	var due []*Alarm
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		now := int64(time.Since(start)) + 1
		w.now.Store(now)
		due = w.due(now, due[:0])
		for i, a := range due {
			a.ring()
			due[i] = nil
		}
	}
}

func (w *Watch) due(now int64, due []*Alarm) []*Alarm {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.alarms {
		if at := a.at.Load(); at != 0 && at <= now && a.at.CompareAndSwap(at, 0) {
			due = append(due, a)
		}
	}
	return due
}
