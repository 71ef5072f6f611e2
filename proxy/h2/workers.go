package h2

import (
	"sync"
	"time"

	"github.com/yumen-zt/yumen/internal/watch"
)

// workers are goroutines that walk requests one after the other: a goroutine
// that is made for one request spends a tenth of it on growing its stack. The
// one that came home last goes first: its stack is in the processor's cache.
type workers struct {
	all  sync.WaitGroup
	tire watch.Alarm // time to send home those that have nothing to do

	mu    sync.Mutex
	idle  []worker // guarded by mu; the newest last
	ended bool     // guarded by mu: nobody waits any more
}

// worker is where a worker waits for the next request; nil sends it home. Its
// capacity is 1, and nobody sends to a worker that is not taken from idle.
type worker chan *stream

const (
	maxIdleWorkers = 1024
	tireAfter      = 5 * time.Second
)

func (w *workers) begin(clock *watch.Watch) {
	clock.Add(&w.tire, w.sendHome)
	w.tire.Arm(tireAfter)
}

// sendHome ends the half of those that wait that has waited longest. An alarm
// may ring still while the end removes it.
func (w *workers) sendHome() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	n := (len(w.idle) + 1) / 2
	for _, old := range w.idle[:n] {
		old <- nil
	}
	rest := copy(w.idle, w.idle[n:])
	clear(w.idle[rest:])
	w.idle = w.idle[:rest]
	w.tire.Arm(tireAfter)
}

// walk walks s, on a worker that waits or on a new one.
func (w *workers) walk(s *stream) {
	w.mu.Lock()
	last := len(w.idle) - 1
	if last < 0 {
		w.mu.Unlock()
		w.all.Go(func() { w.run(s) })
		return
	}
	next := w.idle[last]
	w.idle[last], w.idle = nil, w.idle[:last]
	w.mu.Unlock()
	next <- s
}

func (w *workers) run(s *stream) {
	me := make(worker, 1)
	for s != nil {
		s.run()
		w.mu.Lock()
		if w.ended || len(w.idle) >= maxIdleWorkers {
			w.mu.Unlock()
			return
		}
		w.idle = append(w.idle, me)
		w.mu.Unlock()
		s = <-me
	}
}

// end sends all home and waits for them. No stream may come any more.
func (w *workers) end(clock *watch.Watch) {
	clock.Remove(&w.tire)
	w.mu.Lock()
	w.ended = true
	for _, me := range w.idle {
		me <- nil
	}
	w.idle = nil
	w.mu.Unlock()
	w.all.Wait()
}
