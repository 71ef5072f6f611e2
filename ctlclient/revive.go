package ctlclient

import (
	"context"
	"net"
	"sync"
	"time"
)

// The kernel repeats what it has no answer to at growing distances: a path that
// is back after a while is found late by the connections that waited for it.
const (
	dialAgain   = 3 * time.Second         // a connection that is not there is asked for again: Linux repeats a SYN each second, but only five times
	maxDials    = 4                       // at once
	silenceLong = 2500 * time.Millisecond // without an answer to anything: the path was away
	reviveMost  = 5 * time.Second         // once in
)

// connect dials until one attempt succeeds or fails, and begins another one
// each dialAgain, for the kernel soon waits for too long with the next SYN.
func (c *caller) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	dial := c.cfg.dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	type made struct {
		conn net.Conn
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan made, maxDials)
	running := 0
	start := func() {
		running++
		c.tries.Go(func() {
			conn, err := dial(ctx, network, addr)
			results <- made{conn, err}
		})
	}
	start()
	again := time.NewTicker(dialAgain)
	defer again.Stop()
	for {
		select {
		case <-again.C:
			if running < maxDials {
				start()
			}
		case m := <-results:
			cancel()
			if left := running - 1; left > 0 {
				c.tries.Go(func() {
					for range left {
						if late := <-results; late.conn != nil {
							late.conn.Close()
						}
					}
				})
			}
			return m.conn, m.err
		}
	}
}

// silences notices that a path is back: something was heard after nothing was
// for long, though messages waited for answers. Those go again at once, once.
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
		s.told = now
		close(s.back)
		s.back = make(chan struct{})
	}
	s.since = now
}
