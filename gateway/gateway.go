// Package gateway is the enforcement point, assembled: it builds the parts from
// the configuration, connects them and runs them. There is no protocol here;
// the walks are in gateway/listen, proxy, tunnel and ctlclient, and the
// decisions in access.
//
//	config.go        the configuration file
//	gateway.go       build and run
//	quic.go          the UDP half of the port
//	site.go          what a reload replaces: applications, certificates, sign-in
//	certificates.go  which certificate for which name
//	lists.go         walk (c): verified lists → access
//	alerts.go        walk (d): alerts → log, control center, agents
//	authenticate.go  who sends a request
//	links.go         the gateway's own pages: sign-in, Tables 1 and 2
//	guard.go         the guard in front of the port, and permits
//	admin.go, health.go, status.go   the operator's view
package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sync/errgroup"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/apps/link"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/gateway/listen"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/clock"
	"github.com/yumen-zt/yumen/internal/disk"
	"github.com/yumen-zt/yumen/proxy"
	"github.com/yumen-zt/yumen/tunnel"
	"github.com/yumen-zt/yumen/wire"
)

// Gateway is one enforcement point. Make it with [New], start it with Run.
type Gateway struct {
	path  string // of the configuration file
	log   *zap.Logger
	level zap.AtomicLevel // of log, when it is the gateway's own
	now   func() time.Time

	id, device string
	keys       *keystore.Store        // as they were at the start; those of a reload are the site's
	hello      keystore.LiveDecrypter // opens X.hello of tunnels
	registry   *prometheus.Registry
	alerts     *alerts
	audit      *audit.File
	auditCfg   AuditConfig
	auditStore *audit.Sealing   // nil: records are lines in a file
	accessLog  *audit.AccessLog // nil: none
	auditUp    *auditUp         // nil: audit records stay here
	access     *access.Access
	revoked    *revoked
	peers      sync.Map // *listen.Conn of those that a client certificate opened → *held
	lists      *lists
	link       *ctlclient.Gateway // nil: lists come from files
	proxy      *proxy.Proxy
	tunnel     *tunnel.Server
	appLink    *link.Server // nil: no applications' link
	port       *listen.Port
	guard      *guard // nil: none is configured

	lock   io.Closer  // of the state folder
	reload sync.Mutex // one reload at a time
	site   atomic.Pointer[site]
	moved  chan struct{} // a reload has put another site in place

	taken     chan *net.UnixConn    // of the process that takes over; capacity 1
	handing   atomic.Bool           // it does
	inherited *inheritance          // nil: this process has not taken over
	heir      atomic.Pointer[later] // to the process that has taken over; nil: none has
	heeding   sync.WaitGroup        // reads what that one says
	drained   atomic.Bool           // nothing is left that it could end

	listeners []net.Listener
	packets   []net.PacketConn // UDP sockets
	metrics   net.Listener     // nil: off
	admin     net.Listener
	auditors  net.Listener // nil: none but the admin socket
	started   time.Time
}

// Options are what a caller may choose beside the file.
type Options struct {
	Logger *zap.Logger      // default: JSON on standard error at the file's level
	Now    func() time.Time // default time.Now
	// TakeOver takes the listening sockets and the state folder of the gateway
	// that runs with the same configuration, which drains and ends.
	TakeOver bool
}

// New builds the gateway from the file at path, opens its sockets and verifies
// its stored lists. Nothing is served before [Gateway.Run]; after an error
// nothing is left open.
func New(ctx context.Context, path string, o Options) (_ *Gateway, err error) {
	cfg, err := Load(path)
	if err != nil {
		return nil, err
	}
	g := &Gateway{path: path, log: o.Logger, now: o.Now, registry: prometheus.NewRegistry(), level: zap.NewAtomicLevel(), moved: make(chan struct{}, 1), taken: make(chan *net.UnixConn, 1)}
	if g.now == nil {
		g.now = time.Now
	}
	if g.log == nil {
		if g.log, err = newLogger(g.level); err != nil {
			return nil, err
		}
	}
	if err := g.setLevel(cfg); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	g.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := g.identify(cfg); err != nil { // before anything is taken: keys are slow to decrypt
		return nil, err
	}
	if o.TakeOver {
		if g.inherited, err = takeOver(ctx, cfg.Admin.Socket); err != nil {
			return nil, err
		}
	}
	if g.lock, err = stateFolder(cfg.StateDir); err != nil {
		return nil, err
	}
	g.alerts = newAlerts(g.log, g.now)
	fc := audit.FileConfig{Path: cfg.Audit.File, MaxBytes: cfg.Audit.MaxBytes, Keep: cfg.Audit.Keep, Alerts: g.alerts, Now: g.now}
	if g.auditCfg = cfg.Audit; cfg.Audit.sealed() {
		if g.auditStore, err = auditSealing(g.keys, &cfg.Audit, g.messageKeys); err != nil {
			return nil, err
		}
		fc.Sealed = g.auditStore
	}
	if g.auditUp = newAuditUp(cfg.Audit.Send); g.auditUp != nil {
		fc.Also = g.auditUp
	}
	if g.audit, err = audit.OpenFile(fc); err != nil {
		return nil, err
	}
	g.access = access.New(access.Config{
		GatewayID: g.id, Audit: g.audit, Alerts: g.alerts, Logger: g.log, Registerer: g.registry, Now: g.now, RevokeFor: revokeFor,
	})
	if err := g.recall(cfg.StateDir); err != nil {
		return nil, err
	}
	if err := g.openGuard(ctx, cfg); err != nil {
		return nil, err
	}
	g.lists = &lists{g: g}
	if err := g.build(ctx, cfg); err != nil {
		return nil, err
	}
	if err := g.open(ctx, cfg); err != nil {
		return nil, err
	}
	return g, nil
}

// identify opens the keys and takes the gateway's identifiers from its
// certificate.
func (g *Gateway) identify(cfg *Config) error {
	keys, id, err := openKeys(cfg)
	if err != nil {
		return err
	}
	g.keys, g.id, g.device = keys, id.Gateway, id.Device
	need := []string{keystore.TLS, keystore.Enc, keystore.TLCPSign, keystore.TLCPEnc}
	if cfg.Control != nil || cfg.AppLink != nil || cfg.Audit.sealed() {
		need = append(need, keystore.Sign)
	}
	if cfg.Control != nil || cfg.Audit.sealed() {
		need = append(need, keystore.State)
	}
	return keys.Preload(need...)
}

// messageKeys returns the key folder in use.
func (g *Gateway) messageKeys() *keystore.Store {
	if s := g.site.Load(); s != nil {
		return s.keys
	}
	return g.keys
}

// openKeys reads the key folder anew, so that renewed keys and certificates
// are seen. An identifier in the file must be the certificate's.
func openKeys(cfg *Config) (*keystore.Store, certid.Identity, error) {
	var id certid.Identity
	pass, err := keystore.ReadPassphrase(cfg.Keys.PassphraseFile)
	if err != nil {
		return nil, id, err
	}
	keys, err := keystore.Open(cfg.Keys.Dir, pass)
	if err != nil {
		return nil, id, err
	}
	chain, err := keys.Chain(keystore.TLS)
	if err != nil {
		return nil, id, fmt.Errorf("%w (run yumen enroll CODE --dir %s first)", err, cfg.dir)
	}
	if id, err = certid.OfSM(chain[0]); err != nil {
		return nil, id, err
	}
	if id.Gateway == "" || id.Device == "" {
		return nil, id, fmt.Errorf("read certificate %s: it is not a gateway's (enrol with a gateway's code)", filepath.Join(cfg.Keys.Dir, keystore.TLS+".crt"))
	}
	if cfg.ID != "" && cfg.ID != id.Gateway || cfg.DeviceID != "" && cfg.DeviceID != id.Device {
		return nil, id, fmt.Errorf("id %q and device %q in the file, %q and %q in the certificate (remove them from the file, or enrol again)", cfg.ID, cfg.DeviceID, id.Gateway, id.Device)
	}
	return keys, id, nil
}

// stateFolder makes dir and takes it for this process alone (R19). It refuses
// one that others may write to: what is in it decides who gets in.
func stateFolder(dir string) (lock io.Closer, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	if fi.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("state_dir: mode %v of %s lets others write to it (chmod 700 it)", fi.Mode().Perm(), dir)
	}
	if lock, err = disk.Lock(filepath.Join(dir, "gateway.lock")); err != nil {
		return nil, fmt.Errorf("state_dir: another gateway runs on %s (stop it, or give this one a folder of its own): %w", dir, err)
	}
	return lock, nil
}

// build makes the parts that stay for the gateway's life, then the first site.
func (g *Gateway) build(ctx context.Context, cfg *Config) error {
	s, err := g.newSite(cfg, nil)
	if err != nil {
		return err
	}
	g.site.Store(s)
	g.registry.MustRegister(&appsMetrics{g})
	pc := cfg.Proxy
	pc.GatewayID, pc.Access, pc.Apps = g.id, g.access, s.apps
	pc.Authenticate, pc.Coalesces = authenticator{g}, g.coalesces
	if pc.AssertionKeys, err = assertionKeys(pc.AssertionKeyFile); err != nil {
		return err
	}
	if cfg.AccessLog.File != "" {
		if g.accessLog, err = audit.OpenAccessLog(cfg.AccessLog, g.now); err != nil {
			return err
		}
		pc.Log = g.accessLog.Write
		g.registry.MustRegister(accessLogMetrics(g.accessLog)...)
	}
	pc.Forwarders = proxy.Forwarders{Networks: networks(cfg.Forwarders.Headers), Field: cfg.Forwarders.Field}
	if pc.Handlers, err = g.handlers(cfg); err != nil {
		return err
	}
	pc.Alerts, pc.Audit, pc.Logger, pc.Registerer, pc.Now = g.alerts, g.audit, g.log, g.registry, g.now
	if g.proxy, err = proxy.New(pc); err != nil {
		return err
	}
	if g.tunnel, err = g.newTunnel(cfg); err != nil {
		return err
	}
	var agents alert.Sink = g.tunnel
	g.alerts.agents.Store(&agents)
	reset, err := resetKey(cfg.StateDir)
	if err != nil {
		return err
	}
	if g.port, err = listen.New(listen.Config{
		Handlers: map[string]listen.Handler{
			listen.HTTP1: g.serveHTTP, listen.HTTP2: g.serveHTTP, listen.HTTP3: g.serveHTTP3, listen.Tunnel: g.serveTunnel,
			listen.TunnelSealed: g.serveTunnel,
		},
		QUIC:  listen.QUIC{Streams: int(cfg.Proxy.Limits.Streams), ResetKey: reset, Wrap: g.guard.wrap},
		Faces: s.faces, Limits: cfg.Limits, Forwarders: networks(cfg.Forwarders.ProxyProtocol), Admit: g.guard.admit, Token: g.guard.token, GatewayID: g.id, Audit: g.audit, Alerts: g.alerts,
		Logger: g.log, Registerer: g.registry, Now: g.now,
	}); err != nil {
		return err
	}
	g.lists.site(s)
	if cfg.Control == nil {
		return g.lists.fromFiles(s.keys, cfg.Lists)
	}
	return g.connect(cfg)
}

func (g *Gateway) serveHTTP(ctx context.Context, c *listen.Conn) {
	g.hold(c)
	defer g.drop(c)
	g.proxy.ServeConn(ctx, &proxy.Conn{
		Conn: c.Conn, Protocol: c.Protocol, Suite: c.Suite, SNI: c.SNI, ALPN: c.ALPN, Peer: c.Peer, Remote: c.Remote,
	})
}

// connect makes the link to the control center.
func (g *Gateway) connect(cfg *Config) error {
	host, port, err := net.SplitHostPort(cfg.Listen[0])
	if err != nil {
		return fmt.Errorf("listen[0]: %w", err)
	}
	lc := ctlclient.GatewayConfig{
		URL: cfg.Control.URL, DeviceName: cfg.Name, StateDir: cfg.StateDir, GatewayID: g.id, DeviceID: g.device,
		Keys: g.keys, Crypto: cfg.Crypto.Profile, Handler: g.lists, Alerts: g.alerts, Logger: g.log, Now: g.now, Delivered: linkLatency(g.registry), OutboxConfig: cfg.Outbox,
		StateHash: func() wire.StateHash { return g.access.Snapshot().StateHash() }, Freshness: g.freshness, Contact: g.access.Contact, Permit: g.guard.keys,
	}
	if lc.Port, err = net.LookupPort("tcp", port); err != nil {
		return fmt.Errorf("listen[0]: %w", err)
	}
	if a, err := netip.ParseAddr(host); err == nil && !a.IsUnspecified() {
		lc.IP = a.Unmap().String()
	}
	if a := cfg.Control.Address; a != "" {
		lc.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, a)
		}
	}
	if g.link, err = ctlclient.NewGateway(lc); err != nil {
		return err
	}
	g.registry.MustRegister(&outboxMetrics{g.link.OutboxStatus, g.now}, hedgeMetrics{func() ctlclient.Hedges { return g.link.Status().Hedges }})
	if g.auditUp != nil {
		g.auditUp.link.Store(g.link)
	}
	var up alert.Sink = g.link
	g.alerts.up.Store(&up)
	return nil
}

// open opens every socket, so that a port in use is known before anything runs.
func (g *Gateway) open(ctx context.Context, cfg *Config) error {
	for _, a := range cfg.Listen {
		ln := g.inherited.listener(a)
		if ln == nil {
			var err error
			if ln, err = listen.Listen(ctx, a); err != nil {
				return err
			}
		}
		g.listeners = append(g.listeners, ln)
	}
	if err := g.openQUIC(ctx, cfg); err != nil {
		return err
	}
	if cfg.Metrics.Listen != "off" {
		var err error
		if g.metrics, err = listen.Listen(ctx, cfg.Metrics.Listen); err != nil {
			return fmt.Errorf("%w (set metrics.listen to another loopback address, or off)", err)
		}
	}
	var err error
	if g.admin, err = adminsock.Listen(cfg.Admin.Socket); err != nil || cfg.Audit.Rights.Socket == "" {
		return err
	}
	g.auditors, err = adminsock.ListenAll(cfg.Audit.Rights.Socket)
	return err
}

// close gives back what New opened.
func (g *Gateway) close() {
	for _, ln := range g.listeners {
		ln.Close()
	}
	for _, pc := range g.packets {
		pc.Close()
	}
	if g.metrics != nil {
		g.metrics.Close()
	}
	g.guard.close()
	g.inherited.close()
	if g.admin != nil {
		g.admin.Close()
	}
	if g.auditors != nil {
		g.auditors.Close()
	}
	if g.link != nil {
		g.link.Close()
	}
	if g.revoked != nil {
		_ = g.revoked.close() // as below
	}
	if g.accessLog != nil {
		_ = g.accessLog.Close() // as above
	}
	if g.audit != nil {
		_ = g.audit.Close() // what was written is kept; the error that made us close is the one to tell
	}
	if g.lock != nil {
		g.lock.Close()
	}
}

// Addresses returns where the gateway listens.
func (g *Gateway) Addresses() []net.Addr {
	var all []net.Addr
	for _, ln := range g.listeners {
		all = append(all, ln.Addr())
	}
	return all
}

// Run serves until ctx is done, drains and returns after every goroutine of
// the gateway has ended. A part that fails ends the others.
//
// The parts end in order: the port stops accepting and drains its handlers
// while access still decides and the link still reports, then those end, and
// the audit last of all.
func (g *Gateway) Run(ctx context.Context) error {
	g.started = g.now()
	g.audit.Write(&audit.Record{Time: g.started, Kind: audit.System, GatewayID: g.id, Object: "start", Allowed: true, Result: "ok"})
	back, stopBack := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBack()
	own, stopOwn := context.WithCancel(back) // of what only one process can have
	defer stopOwn()
	front, stopFront := context.WithCancel(ctx)
	defer stopFront()
	waitAdopting := g.adopt()

	var behind, single, before errgroup.Group
	part := func(group *errgroup.Group, name string, run func(context.Context) error, in context.Context) {
		group.Go(func() (err error) {
			defer func() {
				if !g.handing.Load() {
					stopFront() // whatever ends, ends the gateway
				}
			}()
			defer func() {
				if v := recover(); v != nil {
					g.alerts.contain(name, v)
					err = fmt.Errorf("%s panicked: %v", name, v)
				}
			}()
			if err := run(in); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	part(&behind, "access", g.access.Run, back)
	part(&behind, "alerts", g.alerts.run, back)
	watched := clock.NewWatcher(g.now, clock.Steady())
	part(&behind, "clock", func(ctx context.Context) error { return g.alerts.watchClock(ctx, watched) }, back)
	part(&single, "revocations", g.syncRevoked, own)
	part(&behind, "certificates", g.watchCertificates, back)
	part(&behind, "health checks", g.checkHealth, back)
	if g.link != nil {
		part(&single, "control link", g.link.Run, own)
	}
	if g.guard != nil {
		part(&single, "guard", g.guard.run, own)
	}
	if g.metrics != nil {
		part(&single, "metrics", func(ctx context.Context) error { return g.serveMetrics(ctx, g.metrics) }, own)
	}
	if g.appLink != nil {
		part(&single, "applications' link", g.watchApps, own)
	}
	if g.auditors != nil {
		part(&single, "auditors' socket", func(ctx context.Context) error { return adminsock.ServeAll(ctx, g.auditors, g.auditHandler()) }, own)
	}
	part(&single, "admin socket", func(ctx context.Context) error { return adminsock.Serve(ctx, g.admin, g.adminHandler()) }, own)

	part(&before, "proxy", g.proxy.Run, front)
	part(&before, "tunnel", g.tunnel.Run, front)
	part(&before, "port", g.servePort, front)

	var handed error
	var handing sync.WaitGroup
	handing.Go(func() {
		select {
		case <-front.Done():
		case c := <-g.taken:
			g.handing.Store(true)
			handed = g.handOver(c, func() error { stopOwn(); return single.Wait() })
			stopFront()
		}
	})
	err := before.Wait()
	stopFront()
	handing.Wait()
	if g.accessLog != nil {
		err = errors.Join(err, g.accessLog.Close())
	}
	g.audit.Write(&audit.Record{Time: g.now(), Kind: audit.System, GatewayID: g.id, Object: "stop", Allowed: true, Result: "ok"})
	stopBack()
	err = errors.Join(err, handed, behind.Wait())
	waitAdopting()
	if g.handing.Load() {
		if l := g.site.Load().login; l != nil {
			l.Close()
		}
		g.drained.Store(true)
		err = errors.Join(err, g.audit.Close())
		g.heir.Load().Close() // it may be closed with the audit
		g.heeding.Wait()
		return err
	}
	err = errors.Join(err, single.Wait())
	if g.link != nil {
		g.link.Close()
	}
	if l := g.site.Load().login; l != nil {
		l.Close()
	}
	g.guard.close()
	return errors.Join(err, g.revoked.close(), g.audit.Close(), g.lock.Close())
}

func parseLevel(s string) (zapcore.Level, error) { return zapcore.ParseLevel(cmp.Or(s, "info")) }

// setLevel puts the file's level in force. A logger of the caller's keeps its
// own.
func (g *Gateway) setLevel(cfg *Config) error {
	l, err := parseLevel(cfg.Log.Level)
	if err == nil {
		g.level.SetLevel(l)
	}
	return err
}

func newLogger(level zap.AtomicLevel) (*zap.Logger, error) {
	c := zap.NewProductionConfig()
	c.Level = level
	c.Sampling = nil // every line is one that somebody may need
	c.EncoderConfig.TimeKey = "time"
	c.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	c.DisableStacktrace = true
	return c.Build()
}
