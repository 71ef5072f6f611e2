// Package tunnel is the gateway's end of the agents' tunnels (CSA GCR 002-2025
// clause 8, docs/tunnel.md).
//
// A [Server] takes connections whose handshake is done. One connection is one
// tunnel (session.go): the hello says who is there, Table 14 keeps it alive,
// Table 15 tells the agent of alerts (notice.go). Each flow in it (flow.go) asks
// by Table 12, holds a lease of access, and is relayed by tunnel/mux until
// either end or the lease is over.
//
// Start at [Server.ServeConn].
package tunnel

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

// Limits bounds tunnels. The zero value of a field selects its default.
type Limits struct {
	Tunnels     int           `yaml:"tunnels"`      // in all; default 100000
	PerDevice   int           `yaml:"per_device"`   // tunnels of one device; default 4
	Connections int           `yaml:"connections"`  // of one tunnel at once; default 4
	Flows       int           `yaml:"flows"`        // of one tunnel at once; default 1024
	Window      int           `yaml:"window"`       // credit of a flow, bytes; default 1 MiB
	Budget      int           `yaml:"budget"`       // credit of a tunnel's flows, bytes; default 16 MiB
	RenewWithin time.Duration `yaml:"renew_within"` // a tunnel without Table 14 for so long is closed; default 75s
	UDPIdle     time.Duration `yaml:"udp_idle"`     // an association without a datagram; default 60s
	PeerTimeout time.Duration `yaml:"peer_timeout"` // a silent agent is given up; default 10s
}

func (l *Limits) setDefaults() {
	set := func(p *int, n int) {
		if *p == 0 {
			*p = n
		}
	}
	set(&l.Tunnels, 100_000)
	set(&l.PerDevice, 4)
	set(&l.Connections, 4)
	set(&l.Flows, 1024)
	set(&l.Window, 1<<20)
	set(&l.Budget, 16<<20)
	for p, d := range map[*time.Duration]time.Duration{&l.RenewWithin: 75 * time.Second, &l.UDPIdle: time.Minute, &l.PeerTimeout: 10 * time.Second} {
		if *p == 0 {
			*p = d
		}
	}
}

// Validate returns every fault of l, each named by its YAML path.
func (l Limits) Validate() error {
	l.setDefaults()
	var errs []error
	check := func(path string, ok bool, rule string) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %s", path, rule))
		}
	}
	check("tunnels", l.Tunnels > 0, "below 1")
	check("per_device", l.PerDevice > 0, "below 1")
	check("connections", l.Connections > 0, "below 1")
	check("flows", l.Flows > 0 && l.Flows <= 1<<20, "not between 1 and 1048576")
	check("window", l.Window >= 16<<10 && l.Window <= 1<<30, "not between 16 KiB and 1 GiB")
	check("budget", l.Budget >= 0, "negative")
	check("renew_within", l.RenewWithin >= 60*time.Second, "below 60s (agents renew at most every 55 s)")
	check("udp_idle", l.UDPIdle > 0, "not above 0")
	check("peer_timeout", l.PeerTimeout >= 5*time.Second, "below 5s")
	return errors.Join(errs...)
}

// Config is what a [Server] needs. The zero value of an optional field selects
// its default.
type Config struct {
	GatewayID string // required
	DeviceID  string // of the gateway, for Table 15; required
	Access    *access.Access
	Apps      *apps.Registry
	// Hello opens X.hello: sealed to this gateway, signed by an agent whose
	// certificate stands under the message root (envelope.PartySigner). Required.
	Hello   *envelope.Receiver
	Profile wire.Profile // how agents' messages are read; default: lax
	Limits  Limits

	Audit      audit.Sink            // default: none
	Alerts     alert.Sink            // default: none
	Logger     *zap.Logger           // default: none
	Registerer prometheus.Registerer // default: none
	Now        func() time.Time      // default time.Now
}

// Conn is an agent's connection after its handshake. Peer is the leaf that
// proved its key, never another certificate of the chain.
type Conn struct {
	net.Conn
	Protocol policy.Protocol
	Suite    string
	Peer     *x509.Certificate
	Remote   netip.AddrPort // the agent's address
	// Where returns the agent's address as it is now, for a carrier that follows
	// its device to other networks. Default: Remote for ever.
	Where func() netip.AddrPort
}

// Server serves tunnels. Its methods may be called from any goroutine.
type Server struct {
	cfg     Config
	log     *zap.Logger
	apps    atomic.Pointer[apps.Registry]
	mux     mux.Config // of every tunnel, but for its Handler
	metrics metrics
	late    lateReports

	mu       sync.Mutex
	closed   bool                            // guarded by mu
	tunnels  map[*tunnel]struct{}            // guarded by mu
	byDevice map[string]map[*tunnel]struct{} // guarded by mu
	byUser   map[string]map[*tunnel]struct{} // guarded by mu; after the hello
	barred   map[string]time.Time            // guarded by mu; devices that broke a rule, until when
}

// New checks cfg. Nothing runs until Run and ServeConn.
func New(cfg Config) (*Server, error) {
	var errs []error
	for name, missing := range map[string]bool{
		"gateway id": cfg.GatewayID == "", "device id": cfg.DeviceID == "",
		"access": cfg.Access == nil, "apps": cfg.Apps == nil, "hello receiver": cfg.Hello == nil,
	} {
		if missing {
			errs = append(errs, fmt.Errorf("%s: missing", name))
		}
	}
	if err := errors.Join(append(errs, cfg.Limits.Validate())...); err != nil {
		return nil, fmt.Errorf("check tunnel configuration: %w", err)
	}
	cfg.Limits.setDefaults()
	if cfg.Audit == nil {
		cfg.Audit = audit.Discard
	}
	if cfg.Alerts == nil {
		cfg.Alerts = alert.Discard
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger,
		mux: mux.Config{
			Keeper: mux.NewKeeper(cfg.Limits.PeerTimeout), Window: cfg.Limits.Window, Budget: cfg.Limits.Budget,
			RoundTrip: carrier.RoundTrip,
			MaxFlows:  cfg.Limits.Flows + 64, // ours is met first, and answered by Table 13
		},
		tunnels: map[*tunnel]struct{}{}, byDevice: map[string]map[*tunnel]struct{}{}, byUser: map[string]map[*tunnel]struct{}{},
		barred: map[string]time.Time{},
	}
	s.apps.Store(cfg.Apps)
	if err := s.metrics.init(s, cfg.Registerer); err != nil {
		return nil, err
	}
	return s, nil
}

// SetApps puts another registry in force, for flows that open from now on.
func (s *Server) SetApps(r *apps.Registry) { s.apps.Store(r) }

// Run closes tunnels whose session ended or whose renewal is overdue (M82),
// until ctx ends; then it closes them all and refuses new ones.
func (s *Server) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.mu.Lock()
			s.closed = true
			s.mu.Unlock()
			for _, t := range s.all(nil) {
				t.mux.Close(reason.Shutdown)
			}
			return nil
		case <-tick.C:
			now := s.cfg.Now()
			for _, t := range s.all(nil) {
				t.review(now)
			}
		}
	}
}

// all returns the tunnels that match; nil matches all.
func (s *Server) all(match func(*tunnel) bool) []*tunnel {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*tunnel
	for t := range s.tunnels {
		if match == nil || match(t) {
			out = append(out, t)
		}
	}
	return out
}

// join registers t, within the limits.
func (s *Server) join(t *tunnel) reason.Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return reason.Shutdown
	case len(s.tunnels) >= s.cfg.Limits.Tunnels, distinct(s.byDevice[t.id.Device]) >= s.cfg.Limits.PerDevice:
		return reason.TunnelLimit // also for one that may turn out to join another
	case s.cfg.Now().Before(s.barred[t.id.Device]):
		return reason.TunnelLimit
	}
	s.tunnels[t] = struct{}{}
	put(s.byDevice, t.id.Device, t)
	return reason.OK
}

// barFor is how long a device that broke a rule gets no other tunnel: what is
// bounded on a connection must not be had by one connection after the other.
const barFor = 10 * time.Second

func (s *Server) bar(device string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	for d, until := range s.barred {
		if !now.Before(until) {
			delete(s.barred, d)
		}
	}
	s.barred[device] = now.Add(barFor)
}

func (s *Server) leave(t *tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tunnels, t)
	drop(s.byDevice, t.id.Device, t)
	drop(s.byUser, t.userID, t)
}

func put(m map[string]map[*tunnel]struct{}, key string, t *tunnel) {
	if m[key] == nil {
		m[key] = map[*tunnel]struct{}{}
	}
	m[key][t] = struct{}{}
}

func drop(m map[string]map[*tunnel]struct{}, key string, t *tunnel) {
	delete(m[key], t)
	if len(m[key]) == 0 {
		delete(m, key)
	}
}

// Info is what an operator sees of a tunnel.
type Info struct {
	ID        string         `json:"id"` // the session's, too
	AgentID   string         `json:"agentId"`
	DeviceID  string         `json:"deviceId"`
	UserID    string         `json:"userId,omitempty"`
	Remote    netip.AddrPort `json:"remote"`
	Protocol  string         `json:"protocol"`
	Suite     string         `json:"suite,omitempty"`
	Since     time.Time      `json:"since"`
	Renewed   time.Time      `json:"renewed,omitzero"` // the last Table 14, or the hello
	Flows     int            `json:"flows"`
	BytesIn   int64          `json:"bytesIn"`  // from the agent, of ended flows
	BytesOut  int64          `json:"bytesOut"` // to the agent, of ended flows
	Datagrams uint64         `json:"datagramsDropped"`
	// Connections of the tunnel; Remote, Protocol and Suite are the oldest one's.
	Connections int `json:"connections"`
}
