// Package h3 is the HTTP/3 front end (RFC 9114): an engine of our own on the
// connections and streams of quic-go, with the field coding of its qpack.
//
// Each request has a stream and a goroutine, which reads its head, walks it,
// takes its body and writes its answer; a stream that is cut is reset alone.
// Three more goroutines of a connection read the client's control streams and
// wait most of the time. What breaks a rule of the protocol ends the
// connection, what makes a request ambiguous ends the stream, each with the
// code of RFC 9114 §8.1, and neither reaches the walk.
//
// Start with [Server.ServeConn]. conn.go is the connection, control.go what
// comes on its one-way streams, request.go makes a request of a HEADERS frame,
// stream.go is the half of an exchange that a front end gives, connect.go what
// becomes of an extended CONNECT, frame.go the coding of frames.
package h3

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/yumen-zt/yumen/internal/watch"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

// ALPN is the protocol's name (RFC 9114 §3.1).
const ALPN = "h3"

// Config is what a [Server] needs. All fields are required.
type Config struct {
	Serve         func(*exchange.Exchange) error // the walk
	Malformed     func(*exchange.Conn, error)    // of a request, or a connection, that breaks the rules
	HeaderBytes   int                            // of a request's fields, and of their coded form
	HeaderTimeout time.Duration                  // for a request's fields
	IdleTimeout   time.Duration                  // without a stream
	WriteStall    time.Duration                  // a client that takes nothing for so long is gone
	Drain         time.Duration
	Watch         *watch.Watch // runs as long as the server
	Now           func() time.Time
}

// Server serves HTTP/3 connections.
type Server struct {
	cfg  Config
	live sync.WaitGroup // connections and all their goroutines

	mu    sync.Mutex
	ended bool               // guarded by mu: no connection is taken
	conns map[*conn]struct{} // guarded by mu
}

// New returns a server.
func New(cfg Config) *Server { return &Server{cfg: cfg, conns: map[*conn]struct{}{}} }

// Run waits for ctx to end, then tells every client to go away, lets streams in
// flight end for Drain and resets the rest. It returns when every connection is
// closed.
func (s *Server) Run(ctx context.Context) error {
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
		c.fail(errNo)
	}
	s.mu.Unlock()
	<-gone
	return nil
}

// Leave ends every connection while Run goes on: clients are told to go away,
// what is in flight has limit to end, and then each hears that its connection is
// closed, and that nothing was amiss. None is taken after it.
func (s *Server) Leave(limit time.Duration) {
	s.mu.Lock()
	s.ended = true
	var all []*conn
	for c := range s.conns {
		c.drain()
		all = append(all, c)
	}
	s.mu.Unlock()
	for end := time.Now().Add(limit); slices.ContainsFunc(all, (*conn).busy) && time.Now().Before(end); {
		time.Sleep(leaveLook)
	}
	var closing sync.WaitGroup // each takes until its last packet is sent
	for _, c := range all {
		closing.Go(func() { c.fail(errNo) })
	}
	closing.Wait()
}

const leaveLook = 5 * time.Millisecond

// ServeConn serves q, of which c says the rest, and blocks until it is closed.
// c has no net.Conn: bytes travel on streams alone. The end of Run is the end of
// its connections.
func (s *Server) ServeConn(q *quic.Conn, c *exchange.Conn) {
	hc := newConn(s, q, c)
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		_ = q.CloseWithError(quic.ApplicationErrorCode(errNo), "")
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
