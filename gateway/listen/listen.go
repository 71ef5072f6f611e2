// Package listen is the one port: it accepts, peeks the whole ClientHello,
// handshakes under limits and hands the connection to the handler of its
// application protocol (RFC 7301).
//
// The steps of a connection, in order:
//
//	accept.go     1 accept, count, refuse beyond the limits
//	handshake.go  2 peek the ClientHello under its own deadline, never in Accept
//	              3 choose the face by ALPN and server name, handshake
//	              4 hand over to the handler on a fresh goroutine
//	quic.go       the same for QUIC on UDP, where HTTP/3 and tunnels are served
//
// Nothing that a stranger sends before step 4 is seen by any other package.
package listen

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/failed"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
)

// ALPN names that the port knows.
const (
	HTTP1  = "http/1.1"
	HTTP2  = "h2"
	HTTP3  = "h3"      // over QUIC alone
	Tunnel = "yumen/1" // over TLCP, TLS and QUIC

	TunnelSealed = "yumen/1-tlcp" // over TLS and QUIC: the tunnel runs inside TLCP, [Port.Inside]
)

// Handler serves one connection. It owns conn and returns when it has ended;
// ctx is done when the port closes for good.
type Handler func(ctx context.Context, conn *Conn)

// Admission is whether a connection is heard at all.
type Admission int

// The answers of Config.Admit.
const (
	Refused       Admission = iota // reset, without a byte
	Admitted                       // it begins with its hello
	MayShowToken                   // a token may stand before the hello, and is stepped over
	MustShowToken                  // only with a genuine one
)

// Config is what a [Port] needs.
type Config struct {
	Handlers map[string]Handler // by ALPN; HTTP1 also serves clients that offer none; required
	QUIC     QUIC               // of the UDP sockets that AddPackets gives
	Faces    *Faces             // certificates and who must show one; required
	Limits   Limits
	// Admit judges a connection before any byte is read; default: everybody.
	Admit func(local, remote netip.AddrPort) Admission
	// Token judges what stands before the hello of one that must show it; it is
	// needed where Admit demands it.
	Token func(local netip.AddrPort, token []byte) bool
	// Forwarders are the networks whose connections begin with a PROXY header,
	// which names the client. It is demanded of them, and refused from others.
	Forwarders []netip.Prefix
	Drain      time.Duration // how long handlers may go on after Run's context is done; default 30s

	GatewayID  string
	Audit      audit.Sink            // default: none
	Alerts     alert.Sink            // default: none
	Logger     *zap.Logger           // default: none
	Registerer prometheus.Registerer // default: none
	Now        func() time.Time      // default time.Now
}

// Limits bound what strangers can hold. Zero fields select the defaults.
type Limits struct {
	Connections          int           `yaml:"connections"`            // in all; default 50000
	ConnectionsPerSource int           `yaml:"connections_per_source"` // IPv4 address or IPv6 /64; default 2000
	HalfOpen             int           `yaml:"half_open"`              // unauthenticated, in all; default 4096
	HalfOpenPerSource    int           `yaml:"half_open_per_source"`   // default 256
	HalfOpenBytes        int           `yaml:"half_open_bytes"`        // memory of the half-open, in all, the oldest goes first; a quarter of it per source; default 24 MiB
	Hello                time.Duration `yaml:"hello_timeout"`          // for the whole ClientHello; default 5s
	Handshake            time.Duration `yaml:"handshake_timeout"`      // after the ClientHello; default 10s
}

// Validate returns every fault, each named by its YAML path.
func (l Limits) Validate() error {
	var errs []error
	for _, f := range []struct {
		path string
		n    int64
		most int64
	}{
		{"connections", int64(l.Connections), 10_000_000},
		{"connections_per_source", int64(l.ConnectionsPerSource), 10_000_000},
		{"half_open", int64(l.HalfOpen), 10_000_000},
		{"half_open_per_source", int64(l.HalfOpenPerSource), 10_000_000},
		{"half_open_bytes", int64(l.HalfOpenBytes), 1 << 40},
		{"hello_timeout", int64(l.Hello), int64(time.Minute)},
		{"handshake_timeout", int64(l.Handshake), int64(time.Minute)},
	} {
		if f.n < 0 || f.n > f.most {
			errs = append(errs, fmt.Errorf("%s: out of range", f.path))
		}
	}
	return errors.Join(errs...)
}

func (l Limits) withDefaults() Limits {
	l.Connections = cmp.Or(l.Connections, 50000)
	l.ConnectionsPerSource = cmp.Or(l.ConnectionsPerSource, 2000)
	l.HalfOpen = cmp.Or(l.HalfOpen, 4096)
	l.HalfOpenPerSource = cmp.Or(l.HalfOpenPerSource, 256)
	l.HalfOpenBytes = cmp.Or(l.HalfOpenBytes, 24<<20)
	l.Hello = cmp.Or(l.Hello, 5*time.Second)
	l.Handshake = cmp.Or(l.Handshake, 10*time.Second)
	return l
}

// Port serves one or more listeners with one set of limits.
type Port struct {
	cfg     Config
	faces   atomic.Pointer[Faces] // loaded once a handshake
	tlcp    *sessions
	told    failed.Bucket
	half    *halfOpen
	metrics *metrics
	slots   chan struct{} // one a connection
	packets []*packets    // by AddPackets, before Run

	closed   sync.WaitGroup // of the listeners, by StopAccepting
	conns    sync.WaitGroup
	accepts  context.Context // done when nothing more is accepted
	deaf     context.CancelFunc
	handlers context.Context // done when handlers must end
	stop     context.CancelFunc
}

// New returns a port that is not yet listening.
func New(cfg Config) (*Port, error) {
	if cfg.Handlers[HTTP1] == nil || cfg.Faces == nil {
		return nil, errors.New("make port: a handler for http/1.1 and the faces are required")
	}
	if err := cfg.Limits.Validate(); err != nil {
		return nil, fmt.Errorf("make port: limits.%w", err)
	}
	wanted := cfg.Limits.Connections
	cfg.Limits = cfg.Limits.withDefaults()
	cfg.Drain = cmp.Or(cfg.Drain, 30*time.Second)
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
	cfg.Limits.Connections = byDescriptors(cfg.Limits.Connections, descriptors())
	if n := cfg.Limits.Connections; n < wanted {
		cfg.Logger.Warn("fewer connections than limits.connections, for want of descriptors (raise LimitNOFILE or ulimit -n)",
			zap.Int("connections", n), zap.Int("configured", wanted), zap.Uint64("descriptors", descriptors()))
	}
	p := &Port{
		cfg:   cfg,
		half:  newHalfOpen(cfg.Limits),
		tlcp:  newSessions(),
		slots: make(chan struct{}, cfg.Limits.Connections),
	}
	p.closed.Add(1)
	p.SetFaces(cfg.Faces)
	p.accepts, p.deaf = context.WithCancel(context.Background())
	p.handlers, p.stop = context.WithCancel(context.Background())
	p.metrics = newMetrics(cfg.Registerer, p)
	return p, nil
}

// SetFaces replaces the faces for the handshakes to come. Connections that
// stand keep theirs; TLS session tickets of the old faces end with them, TLCP
// sessions are verified anew when they are resumed.
func (p *Port) SetFaces(f *Faces) {
	f.build(p.tlcp)
	p.faces.Store(f)
}

// Listen opens a TCP listener for [Port.Run]. Multipath TCP is off: rules of
// the host's firewall and of Landlock speak of TCP.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w (is another process using the port, or is it below 1024?)", address, err)
	}
	return ln, nil
}

// StopAccepting closes the listeners of Run, and the QUIC connections, and
// returns when that is done. Whatever was accepted goes on: Run's context ends it.
// It is called once at most, while Run runs.
func (p *Port) StopAccepting() {
	p.deaf()
	p.closed.Wait()
}

// settleFor is how long handshakes may take that have begun when nothing more is
// accepted.
const settleFor = time.Second

// Settle waits for the handshakes that have begun, a second at most.
func (p *Port) Settle() {
	for end := time.Now().Add(settleFor); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if n, _ := p.half.size(); n == 0 {
			return
		}
	}
}

// Run serves the listeners until ctx is done, closes them, gives the handlers
// the drain time and returns after every goroutine of the port has ended.
func (p *Port) Run(ctx context.Context, listeners ...net.Listener) error {
	var accepting sync.WaitGroup
	errs := make(chan error, len(listeners)+len(p.packets))
	for _, ln := range listeners {
		accepting.Go(func() { errs <- p.accept(ctx, ln) })
	}
	for _, u := range p.packets {
		accepting.Go(func() { errs <- u.accept() })
	}
	closeAll := func() {
		for _, ln := range listeners {
			ln.Close()
		}
		for _, u := range p.packets {
			u.ln.Close()
		}
	}
	stopped := context.AfterFunc(ctx, closeAll)
	handed := context.AfterFunc(p.accepts, func() {
		closeAll()
		for _, u := range p.packets { // their ports are needed; peers connect again
			u.farewell()
			u.close()
		}
		p.closed.Done()
	})
	accepting.Wait()
	stopped()
	if !handed() {
		p.closed.Wait()
		p.Settle()
	}
	p.half.closeAll()

	drained := make(chan struct{})
	go func() { p.conns.Wait(); close(drained) }()
	timer := time.NewTimer(p.cfg.Drain)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
	}
	p.stop()
	<-drained
	for _, u := range p.packets {
		u.close()
	}
	close(errs)
	var all error
	for err := range errs {
		all = errors.Join(all, err)
	}
	return all
}
