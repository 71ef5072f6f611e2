// Package clock notices when a wall clock is set: a step forward ends grants
// early, a step backward must not let one live longer, and a person should know
// of both (R17).
package clock

import "time"

// Least is the smallest step that [Watcher.Step] reports: what a time service
// moves in one correction stays below it.
const Least = 3 * time.Second

// Watcher compares a wall clock with a steady one. It is for one goroutine.
type Watcher struct {
	now     func() time.Time
	elapsed func() time.Duration
	wall    time.Time
	steady  time.Duration
}

// NewWatcher begins to watch now beside elapsed, such as [Steady].
func NewWatcher(now func() time.Time, elapsed func() time.Duration) *Watcher {
	return &Watcher{now, elapsed, now().Round(0), elapsed()}
}

// Step returns by how much the wall clock was set since the last call, forward
// or back, and whether that is at least [Least].
func (w *Watcher) Step() (by time.Duration, stepped bool) {
	wall, steady := w.now().Round(0), w.elapsed()
	by = wall.Sub(w.wall) - (steady - w.steady)
	w.wall, w.steady = wall, steady
	return by, by.Abs() >= Least
}
