package spool

import (
	"time"
)

// retryEvery is the time between two attempts on a disk that refused.
const retryEvery = 250 * time.Millisecond

// keep saves cursors, removes segments and tries a full disk again, until the
// spool closes. It sleeps while nothing happens.
func (s *Spool) keep() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.closing:
			return
		case <-s.poke:
		}
		timer.Reset(s.delay())
		select {
		case <-s.closing:
			return
		case <-timer.C:
		}
		if s.upkeep() {
			signal(s.poke)
		}
	}
}

func (s *Spool) delay() time.Duration {
	if s.isTight() {
		return min(retryEvery, s.cfg.SaveEvery)
	}
	return s.cfg.SaveEvery
}

// upkeep does what the keeper does, once, and reports whether it must be done
// again soon.
func (s *Spool) upkeep() (again bool) {
	if s.isTight() {
		again = !s.takeReserve()
	}
	for _, l := range s.logs {
		if l.save() != nil {
			again = true
		}
		l.sweep()
		l.mu.Lock()
		retry := l.blocked
		l.blocked = false
		l.mu.Unlock()
		if retry {
			signal(l.wake)
		}
	}
	return again
}

// save writes the cursor if it is behind. A full disk gives up the reserve for
// it, or a segment whose records are all settled.
func (l *log) save() error {
	l.mu.Lock()
	if !l.unsaved {
		l.mu.Unlock()
		return nil
	}
	c := cursor{next: l.synced + 1, done: append(spans(nil), l.done[:min(len(l.done), maxSpans)]...), gaps: append([]Gap(nil), l.known...)}
	l.unsaved = false
	l.mu.Unlock()
	c.done.cut(c.next, ^uint64(0))
	err := l.writeCursor(&c)
	if err != nil && noSpace(err) && (l.s.makeRoom(Alert, err) || l.dropSettled()) {
		err = l.writeCursor(&c)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.unsaved = true
		return err
	}
	l.saved = c.done
	return nil
}

// sweep removes the segments of which the cursor on disk says that all their
// records are settled, and those whose gap is stored. The newest stays, for its
// name keeps the numbers going.
func (l *log) sweep() {
	l.mu.Lock()
	var gone []*segment
	for i, s := range l.segs {
		if s == l.active || i == len(l.segs)-1 && !s.doomed {
			continue
		}
		if s.doomed && s.wait <= l.stored || !s.doomed && s.settled(l.saved) {
			gone = append(gone, s)
		}
	}
	for _, s := range gone {
		l.forget(s)
	}
	l.mu.Unlock()
	for _, s := range gone {
		l.s.cfg.fs.Remove(s.name) // if it stays, opening finds it settled
	}
}

func (s *segment) settled(done spans) bool {
	for _, r := range s.runs {
		if len(done.without(r.from, r.to)) > 0 {
			return false
		}
	}
	return true
}

// dropSettled removes one settled segment although the cursor on disk does not
// say so: a crash now would report its records as missing.
func (l *log) dropSettled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, s := range l.segs {
		if s != l.active && i < len(l.segs)-1 && (s.doomed || s.settled(l.done)) {
			l.forget(s)
			return l.s.cfg.fs.Remove(s.name) == nil
		}
	}
	return false
}
