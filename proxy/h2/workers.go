package h2

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/internal/watch"
)

// workers are goroutines that walk requests one after the other: a goroutine
// that is made for one request spends a tenth of it on growing its stack.
type workers struct {
	work chan *stream // to one that waits; nil sends it home
	idle atomic.Int64
	all  sync.WaitGroup
	tire watch.Alarm // time to send home those that have nothing to do

	mu    sync.Mutex
	ended bool // guarded by mu: work is closed
}

const (
	maxIdleWorkers = 1024
	tireAfter      = 5 * time.Second
)

func (w *workers) begin(clock *watch.Watch) {
	w.work = make(chan *stream)
	clock.Add(&w.tire, w.sendHome)
	w.tire.Arm(tireAfter)
}

// sendHome ends half of those that wait. An alarm may ring still while the end
// removes it.
func (w *workers) sendHome() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	for range (w.idle.Load() + 1) / 2 {
		select {
		case w.work <- nil:
		default:
		}
	}
	w.tire.Arm(tireAfter)
}

// walk walks s, on a worker that waits or on a new one.
func (w *workers) walk(s *stream) {
	select {
	case w.work <- s:
	default:
		w.all.Go(func() { w.run(s) })
	}
}

func (w *workers) run(s *stream) {
	for s != nil {
		s.run()
		if w.idle.Add(1) > maxIdleWorkers {
			w.idle.Add(-1)
			return
		}
		s = <-w.work
		w.idle.Add(-1)
	}
}

// end sends all home and waits for them. No stream may come any more.
func (w *workers) end(clock *watch.Watch) {
	clock.Remove(&w.tire)
	w.mu.Lock()
	w.ended = true
	close(w.work)
	w.mu.Unlock()
	w.all.Wait()
}
