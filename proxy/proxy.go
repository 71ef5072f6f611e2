// Package proxy carries HTTP to applications, request by request, for subjects
// who may have it.
//
// A listener hands over connections after their handshake ([Proxy.ServeConn]).
// The front ends h1 and h2 parse them, each alone for its protocol, into
// [Exchange]s, and every exchange takes the same walk, in serve.go: route,
// authenticate, acquire, rewrite, forward, release. The lease that acquire
// gives is the exchange's right to go on; when access cuts it, the answer ends
// within 100 ms, whatever carries it.
//
// Start with serve.go. path.go and host.go hold the one reading of a target
// and of a host, headers.go what passes in each direction, identity.go what
// the gateway tells an application of the subject, page.go what it tells
// somebody who was refused.
package proxy

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/quic-go"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/watch"
	"github.com/yumen-zt/yumen/proxy/h1"
	"github.com/yumen-zt/yumen/proxy/h2"
	"github.com/yumen-zt/yumen/proxy/h2ref"
	"github.com/yumen-zt/yumen/proxy/h3"
	"github.com/yumen-zt/yumen/proxy/upstream"
)

// Config is what a [Proxy] needs. The zero value of an optional field selects
// its default.
type Config struct {
	Limits Limits `yaml:"limits"`
	// AllowNoSNI serves TLS connections without a server name by their Host field
	// alone, as TLCP connections are. Default: they are refused with 421.
	AllowNoSNI bool `yaml:"allow_no_sni"`

	// HTTP2Engine says who speaks HTTP/2 to clients: [HTTP2Own], the default, or
	// [HTTP2Reference].
	HTTP2Engine string `yaml:"http2_engine"`

	// Forwarders are those whose fields name the client. Default: none.
	Forwarders Forwarders `yaml:"-"`
	// AssertionKeyFile holds AssertionKeys; whoever makes the Config reads it.
	// Default assertion.key in the state folder.
	AssertionKeyFile string `yaml:"assertion_key_file"`

	// Log gets every request when it has ended, and keeps nothing of it. Default: none.
	Log func(*audit.Access) `yaml:"-"`

	GatewayID    string         `yaml:"-"` // required: the issuer of assertions, and the loop mark
	Access       *access.Access `yaml:"-"` // required
	Apps         *apps.Registry `yaml:"-"` // required
	Authenticate Authenticator  `yaml:"-"` // default ClientCertificate{}
	// Coalesces reports whether a connection whose handshake named sni may carry a
	// WebSocket to host (RFC 9113 §9.1.1). Browsers that share a connection so
	// come back on another one after a 421, but not for a WebSocket. Default: none
	// may.
	Coalesces     func(sni, host string) bool `yaml:"-"`
	Handlers      []Handler                   `yaml:"-"` // pages of the gateway's own: sign-in, interfaces
	AssertionKeys []crypto.Signer             `yaml:"-"` // P-256: the first signs identity assertions, all are published; default: a fresh one
	Alerts        alert.Sink                  `yaml:"-"` // default alert.Discard
	Audit         audit.Sink                  `yaml:"-"` // default audit.Discard
	Logger        *zap.Logger                 `yaml:"-"` // default none
	Registerer    prometheus.Registerer       `yaml:"-"` // default none
	Now           func() time.Time            `yaml:"-"` // default time.Now
}

// The engines of HTTP/2.
const (
	HTTP2Own       = "own"       // package h2
	HTTP2Reference = "reference" // x/net/http2, package h2ref
)

// Handler serves the gateway's own pages: everything below Prefix on Host.
type Handler struct {
	Host    string // canonical; empty: on every application's host
	Prefix  string // of the canonical path, such as "/.yumen/"
	Handler http.Handler
}

// Limits bound what one client may send and hold.
type Limits struct {
	HeaderBytes   int           `yaml:"header_bytes"`   // of a request's head; default 32768
	HeaderFields  int           `yaml:"header_fields"`  // default 100
	BodyBytes     int64         `yaml:"body_bytes"`     // of a request's body; default 1 GiB; negative: no limit
	HeaderTimeout time.Duration `yaml:"header_timeout"` // default 10s
	IdleTimeout   time.Duration `yaml:"idle_timeout"`   // between requests; default 75s
	BodyGrace     time.Duration `yaml:"body_grace"`     // a body may be slow for so long; default 10s
	BodyRate      int64         `yaml:"body_rate"`      // then it must have had this many bytes a second; default 500
	WriteStall    time.Duration `yaml:"write_stall"`    // a client that takes nothing for so long is gone; default 30s
	Streams       uint32        `yaml:"streams"`        // of one HTTP/2 connection; default 100
	AnswerTimeout time.Duration `yaml:"answer_timeout"` // for the head of an upstream's answer; default 10s
	UpstreamIdle  time.Duration `yaml:"upstream_idle"`  // of pooled upstream connections, and of bodies that do not move; default 60s
	Drain         time.Duration `yaml:"drain"`          // for requests in flight at the end; default 10s
}

func (l *Limits) defaults() {
	def(&l.HeaderBytes, 32<<10)
	def(&l.HeaderFields, 100)
	def(&l.BodyBytes, 1<<30)
	def(&l.HeaderTimeout, 10*time.Second)
	def(&l.IdleTimeout, 75*time.Second)
	def(&l.BodyGrace, 10*time.Second)
	def(&l.BodyRate, 500)
	def(&l.WriteStall, 30*time.Second)
	def(&l.Streams, 100)
	def(&l.AnswerTimeout, 10*time.Second)
	def(&l.UpstreamIdle, time.Minute)
	def(&l.Drain, 10*time.Second)
}

func def[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Validate returns errors.Join of every fault, each named by its YAML path.
func (c *Config) Validate() error {
	var errs []error
	for _, f := range []struct {
		path string
		bad  bool
	}{
		{"limits.header_bytes", c.Limits.HeaderBytes < 0 || c.Limits.HeaderBytes > 1<<20},
		{"limits.header_fields", c.Limits.HeaderFields < 0},
		{"limits.header_timeout", c.Limits.HeaderTimeout < 0},
		{"limits.idle_timeout", c.Limits.IdleTimeout < 0},
		{"limits.body_grace", c.Limits.BodyGrace < 0},
		{"limits.body_rate", c.Limits.BodyRate < 0},
		{"limits.write_stall", c.Limits.WriteStall < 0},
		{"limits.answer_timeout", c.Limits.AnswerTimeout < 0},
		{"limits.upstream_idle", c.Limits.UpstreamIdle < 0},
		{"limits.drain", c.Limits.Drain < 0},
	} {
		if f.bad {
			errs = append(errs, fmt.Errorf("%s: out of range", f.path))
		}
	}
	if e := c.HTTP2Engine; e != "" && e != HTTP2Own && e != HTTP2Reference {
		errs = append(errs, fmt.Errorf("http2_engine: %q (write %s or %s)", e, HTTP2Own, HTTP2Reference))
	}
	return errors.Join(errs...)
}

// Proxy serves connections. Its methods are safe for concurrent use.
type Proxy struct {
	cfg       Config
	gate      gate
	site      atomic.Pointer[site]
	h1        *h1.Server
	h2        http2Server
	h3        *h3.Server
	altSvc    string // by Advertise
	watch     *watch.Watch
	assertion *assertions
	metrics   *metrics
	mark      string // of the gateway, in Via
	via       string // what we add to Via
	via2      string // for HTTP/2
	via3      string // for HTTP/3
}

// site is what one configuration of the applications gives.
type site struct {
	registry *apps.Registry
	apps     map[*apps.App]*served
	none     figures // of requests to no application
	engine   *upstream.Engine
}

// served is what the walk has of one application.
type served struct {
	handle  access.App
	figures figures
}

// figures returns those of requests to a, which may be nil.
func (s *site) figures(a *apps.App) *figures {
	if a == nil {
		return &s.none
	}
	return &s.apps[a].figures
}

// New returns a proxy that serves nothing before [Proxy.Run].
func New(cfg Config) (*Proxy, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("build proxy: %w", err)
	}
	if cfg.Access == nil || cfg.Apps == nil || cfg.GatewayID == "" {
		return nil, errors.New("build proxy: access, applications and the gateway's id are needed")
	}
	return build(cfg, liveGate{cfg.Access})
}

func build(cfg Config, g gate) (*Proxy, error) {
	cfg.Limits.defaults()
	if cfg.Authenticate == nil {
		cfg.Authenticate = ClientCertificate{}
	}
	if cfg.Alerts == nil {
		cfg.Alerts = alert.Discard
	}
	if cfg.Audit == nil {
		cfg.Audit = audit.Discard
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	p := &Proxy{cfg: cfg, gate: g, watch: watch.New(), mark: "yumen-" + cfg.GatewayID}
	p.via, p.via2, p.via3 = "1.1 "+p.mark, "2 "+p.mark, "3 "+p.mark
	var err error
	if p.metrics, err = newMetrics(cfg.Registerer); err != nil {
		return nil, fmt.Errorf("build proxy: %w", err)
	}
	if p.assertion, err = newAssertions(cfg.AssertionKeys, cfg.GatewayID, cfg.Now); err != nil {
		return nil, fmt.Errorf("build proxy: %w", err)
	}
	p.h1 = h1.New(h1.Config{
		Serve: p.serve, HeaderBytes: cfg.Limits.HeaderBytes, HeaderFields: cfg.Limits.HeaderFields, HeaderTimeout: cfg.Limits.HeaderTimeout,
		IdleTimeout: cfg.Limits.IdleTimeout, WriteStall: cfg.Limits.WriteStall, Drain: cfg.Limits.Drain,
		Watch: p.watch, Malformed: p.malformed, Now: cfg.Now,
	})
	p.h2 = newHTTP2(p)
	p.h3 = h3.New(h3.Config{
		Serve: p.serve, Malformed: p.malformed, HeaderBytes: cfg.Limits.HeaderBytes, HeaderTimeout: cfg.Limits.HeaderTimeout,
		IdleTimeout: cfg.Limits.IdleTimeout, WriteStall: cfg.Limits.WriteStall, Drain: cfg.Limits.Drain, Watch: p.watch, Now: cfg.Now,
	})
	p.SetApps(cfg.Apps)
	return p, nil
}

// http2Server is a front end of HTTP/2.
type http2Server interface {
	Run(context.Context) error
	ServeConn(context.Context, *Conn)
}

func newHTTP2(p *Proxy) http2Server {
	l := &p.cfg.Limits
	if p.cfg.HTTP2Engine == HTTP2Reference {
		return h2ref.New(h2ref.Config{
			Serve: p.serve, HeaderBytes: l.HeaderBytes, IdleTimeout: l.IdleTimeout, WriteStall: l.WriteStall,
			Streams: l.Streams, Drain: l.Drain, Logger: p.cfg.Logger, Now: p.cfg.Now,
		})
	}
	return h2.New(h2.Config{
		Serve: p.serve, HeaderBytes: l.HeaderBytes, IdleTimeout: l.IdleTimeout, WriteStall: l.WriteStall,
		Streams: l.Streams, Drain: l.Drain, Watch: p.watch, Now: p.cfg.Now,
	})
}

// SetApps replaces the applications, for requests that come from now on, on
// old connections too. Requests in flight end as they began.
func (p *Proxy) SetApps(r *apps.Registry) {
	s := &site{registry: r, apps: map[*apps.App]*served{}, none: p.metrics.figures("none")}
	for _, a := range r.All() {
		s.apps[a] = &served{handle: p.gate.app(a.ID), figures: p.metrics.figures(a.ID)}
	}
	s.engine = upstream.New(upstream.Config{
		Dial: r.Dial, AnswerTimeout: p.cfg.Limits.AnswerTimeout, IdleTimeout: p.cfg.Limits.UpstreamIdle,
		Watch: p.watch,
	})
	if old := p.site.Swap(s); old != nil {
		old.engine.CloseIdle()
	}
}

// Run serves the connections that ServeConn is given, until ctx ends. It then
// closes idle connections, lets requests in flight end for limits.drain, cuts
// the rest and returns when all are gone.
func (p *Proxy) Run(ctx context.Context) error {
	alarms, silence := context.WithCancel(context.WithoutCancel(ctx)) // they ring until the last connection is closed
	var watching sync.WaitGroup
	watching.Go(func() { _ = p.watch.Run(alarms) })
	defer watching.Wait()
	defer silence()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.h1.Run(ctx) })
	g.Go(func() error { return p.h2.Run(ctx) })
	g.Go(func() error { return p.h3.Run(ctx) })
	err := g.Wait()
	p.site.Load().engine.CloseIdle()
	return err
}

// ServeConn serves c, and blocks until it is closed; c is the proxy's from
// here on. Connections that come after the end of Run are closed.
func (p *Proxy) ServeConn(ctx context.Context, c *Conn) {
	boundSendBuffer(c.Raw())
	p.metrics.connections.WithLabelValues(alpnLabel(c.ALPN)).Inc()
	if c.ALPN == "h2" {
		p.h2.ServeConn(ctx, c)
		return
	}
	p.h1.ServeConn(ctx, c)
}

// Advertise makes answers over TLS 1.3 and TCP say by Alt-Svc (RFC 7838) where
// HTTP/3 is. It is called before Run; an empty value says nothing.
func (p *Proxy) Advertise(altSvc string) { p.altSvc = altSvc }

// LeaveQUIC ends the HTTP/3 connections, of which what is in flight has limit to
// end, and takes no more.
func (p *Proxy) LeaveQUIC(limit time.Duration) { p.h3.Leave(limit) }

// ServeQUIC serves the HTTP/3 connection q, of which c says the rest, and blocks
// until it is closed. It is the proxy's from here on.
func (p *Proxy) ServeQUIC(q *quic.Conn, c *Conn) {
	p.metrics.connections.WithLabelValues(h3.ALPN).Inc()
	p.h3.ServeConn(q, c)
}

func alpnLabel(alpn string) string {
	if alpn == "h2" {
		return "h2"
	}
	return "h1"
}
