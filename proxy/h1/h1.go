// Package h1 is the HTTP/1.1 front end: one goroutine a connection reads a
// request by package message, walks it, writes the answer, and begins again.
// An idle connection holds no buffer.
//
// Start with [Server.ServeConn]; conn.go is the loop over the requests of a
// connection, request.go the half of an exchange that a front end gives.
package h1

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/internal/watch"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

// Config is what a [Server] needs. All fields are required.
type Config struct {
	Serve         func(*exchange.Exchange) error // the walk
	HeaderBytes   int                            // of a head, and of a trailer
	HeaderFields  int
	HeaderTimeout time.Duration // from the first byte of a head to its end
	IdleTimeout   time.Duration // between requests
	WriteStall    time.Duration // a client that takes nothing for so long is reset
	Drain         time.Duration
	Watch         *watch.Watch                         // runs as long as the server
	Malformed     func(c *exchange.Conn, detail error) // a request broke the grammar
	Now           func() time.Time
}

// Server serves HTTP/1.1 connections.
type Server struct {
	cfg      Config
	draining atomic.Bool // no connection takes another request
	live     sync.WaitGroup

	mu    sync.Mutex
	ended bool               // guarded by mu: no connection is taken
	conns map[*conn]struct{} // guarded by mu
}

// New returns a server.
func New(cfg Config) *Server { return &Server{cfg: cfg, conns: map[*conn]struct{}{}} }

// Run waits for ctx to end, then closes idle connections, lets requests and
// tunnels in flight end for Drain and resets the rest. It returns when every
// connection is closed.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	s.draining.Store(true)
	s.mu.Lock()
	s.ended = true
	for c := range s.conns {
		c.wakeIdle()
	}
	s.mu.Unlock()
	gone := make(chan struct{})
	go func() { s.live.Wait(); close(gone) }()
	drain := time.NewTimer(s.cfg.Drain)
	defer drain.Stop()
	select {
	case <-gone:
		return nil
	case <-drain.C:
	}
	s.mu.Lock()
	for c := range s.conns {
		c.c.Reset()
	}
	s.mu.Unlock()
	<-gone
	return nil
}

// ServeConn serves c and blocks until it is closed. ctx is not used: the end of
// Run is the end of its connections.
func (s *Server) ServeConn(_ context.Context, c *exchange.Conn) {
	hc := newConn(s, c)
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		c.Close()
		return
	}
	s.conns[hc] = struct{}{}
	s.live.Add(1)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, hc)
		s.mu.Unlock()
		s.live.Done()
	}()
	hc.serve()
}
