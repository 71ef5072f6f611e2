// Package h2ref is the other HTTP/2 front end, on x/net/http2's server: the
// reference that package h2 is compared with, and a way out for a site that needs
// one. A stream that
// is cut is reset alone; the others of its connection go on.
package h2ref

//lint:file-ignore SA1019 http2.Server serves any net.Conn, TLCP ones too; net/http serves HTTP/2 on *tls.Conn alone

import (
	"context"
	"log"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/http2"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// Config is what a [Server] needs. All fields are required.
type Config struct {
	Serve       func(*exchange.Exchange) error // the walk
	HeaderBytes int
	IdleTimeout time.Duration
	WriteStall  time.Duration
	Streams     uint32
	Drain       time.Duration
	Logger      *zap.Logger
	Now         func() time.Time
}

// Server serves HTTP/2 connections.
type Server struct {
	cfg   Config
	http2 *http2.Server
	base  *http.Server // carries limits, and the graceful end

	mu    sync.Mutex
	ended bool                        // guarded by mu
	conns map[*exchange.Conn]struct{} // guarded by mu
	live  sync.WaitGroup
}

type connKey struct{}

// New returns a server.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, conns: map[*exchange.Conn]struct{}{}}
	s.base = &http.Server{
		MaxHeaderBytes: cfg.HeaderBytes,
		IdleTimeout:    cfg.IdleTimeout,
		ErrorLog:       debugLog(cfg.Logger),
		Handler: &handler{
			cfg: &s.cfg, serve: s.serve,
			conn: func(ctx context.Context) *exchange.Conn { return ctx.Value(connKey{}).(*exchange.Conn) },
		},
	}
	s.http2 = &http2.Server{
		MaxConcurrentStreams:         cfg.Streams,
		IdleTimeout:                  cfg.IdleTimeout,
		WriteByteTimeout:             cfg.WriteStall,
		ReadIdleTimeout:              30 * time.Second,
		MaxUploadBufferPerConnection: 1 << 20,
		MaxUploadBufferPerStream:     256 << 10,
		// TLCP connections are as good: the listener has chosen the suites.
		PermitProhibitedCipherSuites: true,
	}
	// Makes base.Shutdown send GOAWAY on every connection. It cannot fail:
	// base has no TLS configuration.
	_ = http2.ConfigureServer(s.base, s.http2)
	return s
}

// serve counts the walk: it may outlive its connection.
func (s *Server) serve(x *exchange.Exchange) error {
	s.live.Add(1) // its connection is counted still
	defer s.live.Done()
	return s.cfg.Serve(x)
}

// Run waits for ctx to end, then lets streams in flight end for Drain and
// resets the rest. It returns when every connection is closed.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Drain)
	defer cancel()
	_ = s.base.Shutdown(drain) // begins the graceful end and does not wait for it
	gone := make(chan struct{})
	go func() { s.live.Wait(); close(gone) }()
	select {
	case <-gone:
		return nil
	case <-drain.Done():
	}
	s.mu.Lock()
	for c := range s.conns {
		c.Reset()
	}
	s.mu.Unlock()
	<-gone
	return nil
}

// ServeConn serves c and blocks until it is closed. ctx gives values alone:
// the end of Run is the end of its connections.
func (s *Server) ServeConn(ctx context.Context, c *exchange.Conn) {
	defer c.Close()
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	s.conns[c] = struct{}{}
	s.live.Add(1)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		s.live.Done()
	}()
	s.http2.ServeConn(c, &http2.ServeConnOpts{
		Context:    context.WithValue(context.WithoutCancel(ctx), connKey{}, c),
		BaseConfig: s.base,
	})
}

// debugLog is for what the server says of single connections: strangers can
// make it say as much as they like, so it is for debugging alone.
func debugLog(l *zap.Logger) *log.Logger {
	std, err := zap.NewStdLogAt(l, zap.DebugLevel)
	if err != nil {
		panic(err) // the level exists
	}
	return std
}
