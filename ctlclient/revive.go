package ctlclient

import (
	"sync"
	"time"
)

const (
	silenceLong = 2500 * time.Millisecond // without an answer to anything: the path was away
	reviveMost  = 5 * time.Second         // once in
	brokenMost  = time.Second             // once in
	// suspectAfter is how long a message has waited that goes again when others
	// find the path changed.
	suspectAfter = 250 * time.Millisecond
)

// silences notices that a path is back: something was heard after nothing was
// for long, though messages waited for answers; or that connections are dead, for
// a fresh one was answered before one that is kept. What waits goes again at
// once, once: the kernel repeats what it has no answer to at growing distances.
// The zero value is ready.
type silences struct {
	mu      sync.Mutex
	waiting int           // guarded by mu; messages without an answer
	since   time.Time     // guarded by mu; something has waited since, and nothing was heard
	told    time.Time     // guarded by mu
	back    chan struct{} // guarded by mu; closed when the path is back
}

// begin counts a message; the channel closes when the path is back. end takes
// it away.
func (s *silences) begin() (back <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting++; s.waiting == 1 {
		s.since = time.Now()
	}
	if s.back == nil {
		s.back = make(chan struct{})
	}
	return s.back
}

func (s *silences) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting--
}

// heard notes that the control center has said something.
func (s *silences) heard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.waiting > 0 && now.Sub(s.since) >= silenceLong && (s.told.IsZero() || now.Sub(s.told) >= reviveMost) {
		s.tell(now)
	}
	s.since = now
}

// broken notes that kept connections have proved dead.
func (s *silences) broken() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.waiting > 0 && (s.told.IsZero() || now.Sub(s.told) >= brokenMost) {
		s.tell(now)
	}
}

// tell lets what waits go again. The caller holds mu.
func (s *silences) tell(now time.Time) {
	s.told = now
	close(s.back)
	s.back = make(chan struct{})
}
