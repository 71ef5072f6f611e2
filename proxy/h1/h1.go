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
}

type connKey struct{}

// New returns a server that serves nothing before Run.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, conns: make(chan net.Conn), done: make(chan struct{})}
	s.http = &http.Server{
		Handler: &bridge.Handler{
			Carrier: exchange.H1, Serve: cfg.Serve, Now: cfg.Now,
			Conn:  func(ctx context.Context) *exchange.Conn { return ctx.Value(connKey{}).(*guard).conn },
			Taken: func(c net.Conn) { c.(*guard).release() },
		},
		MaxHeaderBytes:    cfg.HeaderBytes,
		ReadHeaderTimeout: cfg.HeaderTimeout,
		IdleTimeout:       cfg.IdleTimeout,
		ErrorLog:          zap.NewStdLog(cfg.Logger.WithOptions(zap.IncreaseLevel(zap.DebugLevel))),
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		// "OPTIONS *" must reach the walk, which refuses it.
		DisableGeneralOptionsHandler: true,
	}
	return s
}

// Run serves until ctx ends, then lets requests in flight end for Drain and
// closes the rest. It returns when every connection is closed.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.once.Do(func() { close(s.done) }) })
	defer stop()
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(listener{s}) }()
	var err error
	select {
	case <-ctx.Done():
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Drain)
		if s.http.Shutdown(drain) != nil {
			s.http.Close()
		}
		cancel()
		err = <-served
	case err = <-served:
		s.once.Do(func() { close(s.done) })
	}
	s.live.Wait()
	if err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve http/1.1: %w", err)
	}
	return nil
}

// ServeConn serves c and blocks until it is closed. When ctx ends first, c is
// closed.
func (s *Server) ServeConn(ctx context.Context, c *exchange.Conn) {
	g := newGuard(c, s.cfg.HeaderBytes, s.cfg.Malformed)
	s.live.Add(1)
	defer s.live.Done()
	select {
	case s.conns <- g:
	case <-s.done:
		c.Close()
		return
	case <-ctx.Done():
		c.Close()
		return
	}
	select {
	case <-g.closed:
	case <-ctx.Done():
		select {
		case <-g.closed:
		case <-s.done: // the server is draining and closes g itself
			<-g.closed
		default:
			c.Reset()
			<-g.closed
		}
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
	l.s.once.Do(func() { close(l.s.done) })
	return nil
}

func (l listener) Addr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "yumen" }
func (addr) String() string  { return "h1" }
