// Package h2 is the HTTP/2 front end (RFC 9113): an engine of our own on the
// framer of x/net/http2.
//
// One goroutine a connection reads frames and never waits for anything but the
// next one. Each request has a goroutine of its own, which walks it, takes its
// body and writes its answer; who finds the connection's write buffer idle sends
// it, with what others have put there. A stream that is cut is reset alone.
//
// Start with [Server.ServeConn]. conn.go is the reader, write.go the buffer and
// the windows, stream.go the half of an exchange that a front end gives,
// request.go what makes a request of a HEADERS frame.
package h2

import (
	"context"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/internal/watch"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

// Config is what a [Server] needs. All fields are required.
type Config struct {
	Serve       func(*exchange.Exchange) error // the walk
	HeaderBytes int                            // of a request's fields
	IdleTimeout time.Duration                  // without a stream
	WriteStall  time.Duration                  // a client that takes nothing for so long is gone
	Streams     uint32                         // at once
	Drain       time.Duration
	Watch       *watch.Watch // runs as long as the server
	Now         func() time.Time
}

// Server serves HTTP/2 connections.
type Server struct {
	cfg     Config
	live    sync.WaitGroup // connections and walks
	workers workers

	mu    sync.Mutex
	ended bool               // guarded by mu: no connection is taken
	conns map[*conn]struct{} // guarded by mu
}

// New returns a server.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, conns: map[*conn]struct{}{}}
	s.workers.begin(cfg.Watch)
	return s
}

// Run waits for ctx to end, then tells every client to go away, lets streams in
// flight end for Drain and resets the rest. It returns when every connection is
// closed.
func (s *Server) Run(ctx context.Context) error {
	defer s.workers.end(s.cfg.Watch)
	<-ctx.Done()
	s.mu.Lock()
	s.ended = true
	for c := range s.conns {
		c.drain()
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
