// Package h1 is the HTTP/1.1 front end: net/http's server over the connections
// that it is given, one server for all of them.
//
// net/http decides how a request is framed, and it alone: the walk and the
// upstream see nothing but what it made of the bytes. It is lenient where it
// hides things (a Content-Length beside Transfer-Encoding, folded lines, bare
// line feeds), so a guard stands before it (guard.go) that reads along and only
// ever rejects.
package h1

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/proxy/bridge"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

// Config is what a [Server] needs. All fields are required.
type Config struct {
	Serve         func(*exchange.Exchange) error // the walk
	HeaderBytes   int
	HeaderTimeout time.Duration
	IdleTimeout   time.Duration
	Drain         time.Duration
	Malformed     func(c *exchange.Conn, detail error) // a head was rejected by the guard
	Logger        *zap.Logger
	Now           func() time.Time
}

// Server serves HTTP/1.1 connections.
type Server struct {
	cfg   Config
	http  *http.Server
	conns chan net.Conn // to the server's accept loop
	done  chan struct{} // closed when no connection is taken any more
	once  sync.Once
	live  sync.WaitGroup

	mu     sync.Mutex
	guards map[*guard]struct{} // guarded by mu; with those that upgrades took from the server
}

type connKey struct{}

// New returns a server that serves nothing before Run.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, conns: make(chan net.Conn), done: make(chan struct{}), guards: map[*guard]struct{}{}}
	s.http = &http.Server{
		Handler: &bridge.Handler{
			Carrier: exchange.H1, Serve: s.serve, Now: cfg.Now,
			Conn:  func(ctx context.Context) *exchange.Conn { return ctx.Value(connKey{}).(*guard).conn },
			Taken: func(c net.Conn) { c.(*guard).release() },
		},
		MaxHeaderBytes:    cfg.HeaderBytes,
		ReadHeaderTimeout: cfg.HeaderTimeout,
		IdleTimeout:       cfg.IdleTimeout,
		ErrorLog:          debugLog(cfg.Logger),
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		// "OPTIONS *" must reach the walk, which refuses it.
		DisableGeneralOptionsHandler: true,
	}
	return s
}

// serve counts the walk: it may outlive its connection.
func (s *Server) serve(x *exchange.Exchange) error {
	s.live.Add(1) // its connection is counted still
	defer s.live.Done()
	return s.cfg.Serve(x)
}

// Run serves until ctx ends, then lets requests and tunnels in flight end for
// Drain and resets the rest. It returns when every connection is closed.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.end)
	defer stop()
	err := s.http.Serve(listener{s})
	s.end()
	if errors.Is(err, net.ErrClosed) {
		err = nil // the listener's end
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Drain)
	defer cancel()
	_ = s.http.Shutdown(drain) // knows nothing of upgraded connections
	gone := make(chan struct{})
	go func() { s.live.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-drain.Done():
		s.mu.Lock()
		for g := range s.guards {
			g.conn.Reset()
		}
		s.mu.Unlock()
		_ = s.http.Close()
		<-gone
	}
	if err != nil {
		return fmt.Errorf("serve http/1.1: %w", err)
	}
	return nil
}

// end stops taking connections. The lock keeps it apart from a connection that
// is about to be counted.
func (s *Server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.once.Do(func() { close(s.done) })
}

// ServeConn serves c and blocks until it is closed. ctx bounds the wait for
// Run alone: the end of Run is the end of its connections.
func (s *Server) ServeConn(ctx context.Context, c *exchange.Conn) {
	g := newGuard(c, s.cfg.HeaderBytes, s.cfg.Malformed)
	s.mu.Lock()
	select {
	case <-s.done:
		s.mu.Unlock()
		c.Close()
		return
	default:
	}
	s.guards[g] = struct{}{}
	s.live.Add(1)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.guards, g)
		s.mu.Unlock()
		s.live.Done()
	}()
	select {
	case s.conns <- g:
		<-g.closed
	case <-s.done:
		c.Close()
	case <-ctx.Done():
		c.Close()
	}
}

// listener gives the server its connections.
type listener struct{ s *Server }

func (l listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.s.conns:
		return c, nil
	case <-l.s.done:
		return nil, net.ErrClosed
	}
}

func (l listener) Close() error {
	l.s.end()
	return nil
}

func (l listener) Addr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "yumen" }
func (addr) String() string  { return "h1" }

// debugLog is for what the server says of single connections: strangers can
// make it say as much as they like, so it is for debugging alone.
func debugLog(l *zap.Logger) *log.Logger {
	std, err := zap.NewStdLogAt(l, zap.DebugLevel)
	if err != nil {
		panic(err) // the level exists
	}
	return std
}
