package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/bpf"
	"github.com/yumen-zt/yumen/crypto/permit"
	"github.com/yumen-zt/yumen/gateway/listen"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/spa"
	"github.com/yumen-zt/yumen/wire"
)

// confirmWithin is how long `guard on` lasts without `guard confirm`.
const confirmWithin = 60 * time.Second

// guard is the gateway's side of the guard: what lists mean for it, knocks, and
// the operator's switch. Where no guard runs it admits in user space. A nil
// guard admits everybody: none is configured.
type guard struct {
	g       *Gateway
	cfg     *GuardConfig
	log     *zap.Logger
	marker  string   // a file: the guard is on
	hidden  []uint16 // TCP
	quic    []uint16 // the same of UDP
	managed []netip.Prefix
	book    *spa.Book
	permits devicePermits
	tier    tier  // nil: it cannot be loaded
	lacks   error // why
	knocks  []net.PacketConn

	on      atomic.Bool // attached
	watch   guardWatch
	results [4]atomic.Uint64 // knocks: opened, refused, not opened, opened by a long-lived key

	mu      sync.Mutex
	pending *time.Timer // guarded by mu; takes an unconfirmed guard off
	until   time.Time   // guarded by mu; of pending
}

// openGuard loads the guard of cfg and takes a pinned one over.
func (g *Gateway) openGuard(ctx context.Context, cfg *Config) (err error) {
	c := cfg.Guard
	if c == nil {
		return nil
	}
	d := &guard{g: g, cfg: c, log: g.log, marker: filepath.Join(cfg.StateDir, "guard.on"), book: spa.NewBook(uint16(c.KnockPort), g.now)}
	d.watch.init()
	bc, err := c.bpf(g.log)
	if err != nil {
		return err
	}
	d.managed = bc.Management
	d.hidden, d.quic = cfg.hidden()
	bc.TokenUDP = d.quic
	root, err := loadRoot(cfg.StateDir)
	if err != nil {
		return err
	}
	blocked, err := readBlocklists(c.Blocklists)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.tier, d.lacks = openTier(bc, openXDP, openNft); d.lacks == nil {
		now, _ := running(d.tier)
		if x, ok := now.(*bpf.Guard); ok {
			if err := x.Prepare(); err != nil {
				d.log.Warn("the guard could not be kept beyond this process", zap.Error(err))
			}
		}
		if d.lacks = d.tier.Deny(blocked); d.lacks == nil && (c.Required || d.marked() || d.tier.State().Pinned) {
			d.lacks = d.attach(true)
		}
	}
	if d.lacks != nil {
		if c.Required {
			return fmt.Errorf("guard: %w (or set guard.required to no)", d.lacks)
		}
		if d.tier != nil {
			d.tier.Close()
			d.tier = nil
		}
		d.log.Warn("the guard does not run, admission is in user space", zap.Error(d.lacks))
		g.alerts.Raise(alert.Alert{Code: alert.GuardOff, Detail: d.lacks.Error()})
	}
	d.permits = devicePermits{
		gatewayID: g.id, root: root, life: c.TicketLife, now: g.now, log: g.log, book: d.book, tier: d.tier, have: map[string][]permit.Ticket{},
		users: map[string]map[string]struct{}{}, start: g.now(),
	}
	d.permits.keys = d.permits.counting()
	switch {
	case len(d.hidden) == 0 && len(d.quic) > 0:
		d.permits.port, d.permits.protocol = d.quic[0], spa.UDP
	case len(d.hidden) > 0 && slices.Contains(d.quic, d.hidden[0]):
		d.permits.port = d.hidden[0]
	case len(d.hidden) > 0:
		d.permits.port, d.permits.protocol = d.hidden[0], spa.TCP
	}
	if err := d.listen(ctx, cfg); err != nil {
		return err
	}
	g.registry.MustRegister(d)
	g.guard = d
	return nil
}

// listen opens the port of knocks, for when they come through the stack. It
// answers nothing.
func (d *guard) listen(ctx context.Context, cfg *Config) error {
	hosts := map[string]bool{}
	for _, a := range cfg.Listen {
		host, _, err := net.SplitHostPort(a)
		if err != nil || hosts[host] {
			continue
		}
		hosts[host] = true
		c, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", net.JoinHostPort(host, fmt.Sprint(d.cfg.KnockPort)))
		if err != nil {
			return fmt.Errorf("guard.knock_port: %w", err)
		}
		d.knocks = append(d.knocks, c)
	}
	return nil
}

func (d *guard) close() {
	if d == nil {
		return
	}
	for _, c := range d.knocks {
		c.Close()
	}
	if d.tier != nil {
		d.tier.Close() // a pinned one goes on, closed
	}
}

func (d *guard) marked() bool {
	_, err := os.Stat(d.marker)
	return err == nil
}

// attach puts the guard in force; keep: beyond this process.
func (d *guard) attach(keep bool) error {
	err := d.tier.Attach()
	if err == nil && keep {
		err = d.tier.Pin()
	}
	d.on.Store(err == nil)
	return err
}

// run is the guard's work, until ctx is done.
func (d *guard) run(ctx context.Context) error {
	var parts errgroup.Group
	for _, c := range d.knocks {
		stop := context.AfterFunc(ctx, func() { c.Close() })
		defer stop()
		parts.Go(func() error { d.serveKnocks(c); return nil })
	}
	if d.tier != nil {
		parts.Go(func() error {
			return d.tier.Run(ctx, func(k bpf.Knock) { d.knock(k.Data, k.Source) }, d.watch.add)
		})
	}
	parts.Go(func() error { d.tend(ctx); return nil })
	err := parts.Wait()
	d.mu.Lock()
	if d.pending != nil {
		d.pending.Stop()
	}
	d.mu.Unlock()
	return err
}

// serveKnocks reads knocks that come through the stack.
func (d *guard) serveKnocks(c net.PacketConn) {
	b := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error of something that we never sent
		}
		if a, ok := from.(*net.UDPAddr); ok {
			d.knock(b[:n], a.AddrPort())
		}
	}
}

// knock opens a port for one connection when data is genuine, and is silent in
// every case.
func (d *guard) knock(data []byte, from netip.AddrPort) {
	w, alias, device, r := d.book.Knock(data)
	if r == reason.OK && !d.opens(w) {
		r = reason.GuardTicketPort
	}
	if r != reason.OK {
		d.results[1].Add(1)
		if device != "" { // whoever has a ticket and does not use it well is worth a line
			d.log.Info("knock refused", zap.Stringer("remote_addr", from), zap.String("device_id", device), zap.Stringer("reason", r))
		}
		return
	}
	source := from.Addr().Unmap()
	ok := d.book.Open(source, w, alias)
	if d.tier != nil {
		if err := d.tier.OpenPort(source, w.Port, w.Protocol, alias, spa.OpenFor); err != nil {
			d.log.Error("port not opened", zap.Stringer("remote_addr", from), zap.Error(err))
			ok = false
		}
	}
	if !ok {
		d.results[2].Add(1)
		return
	}
	if d.book.Home(alias) {
		d.results[3].Add(1)
		d.log.Info("device comes home by its long-lived key", zap.Stringer("remote_addr", from), zap.String("device_id", device))
	} else {
		d.results[0].Add(1)
	}
	if ce := d.log.Check(zap.DebugLevel, "knock"); ce != nil {
		ce.Write(zap.Stringer("remote_addr", from), zap.String("device_id", device), zap.Stringer("opened", w))
	}
}

// opens reports whether a knock may open w.
func (d *guard) opens(w spa.Wanted) bool {
	switch w.Protocol {
	case spa.TCP:
		return slices.Contains(d.hidden, w.Port) || slices.Contains(d.cfg.Doors, int(w.Port))
	case spa.UDP:
		return slices.Contains(d.quic, w.Port)
	}
	return false
}

// admit judges a connection that was accepted: where the guard runs it has
// judged already, else hidden ports are for those who knocked, or who show a
// token first.
func (d *guard) admit(local, remote netip.AddrPort) listen.Admission {
	if d == nil || !slices.Contains(d.hidden, local.Port()) {
		return listen.Admitted
	}
	switch known := d.on.Load() || d.manages(remote.Addr()) || d.book.Admit(remote.Addr(), spa.Wanted{Port: local.Port(), Protocol: spa.TCP}); {
	case known && d.cfg.SYNToken:
		return listen.MayShowToken
	case known:
		return listen.Admitted
	case d.cfg.SYNToken:
		return listen.MustShowToken
	}
	return listen.Refused
}

// wrap puts the judge of permits before QUIC on a hidden port.
func (d *guard) wrap(pc net.PacketConn) net.PacketConn {
	c, ok := pc.(*net.UDPConn)
	if d == nil || !ok {
		return pc
	}
	port := c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	if !slices.Contains(d.quic, port) {
		return pc
	}
	return spa.NewGate(c, func(from netip.AddrPort, data []byte) bool {
		return d.on.Load() || d.manages(from.Addr()) || d.book.Datagram(from, port, data)
	})
}

func (d *guard) manages(a netip.Addr) bool {
	return slices.ContainsFunc(d.managed, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
}

// token judges what a stream to a hidden port begins with, where the guard has
// not.
func (d *guard) token(local netip.AddrPort, token []byte) bool {
	device, r := d.book.Token(token, local.Port(), spa.TCP)
	if r != reason.OK && device != "" {
		d.log.Info("token refused", zap.String("device_id", device), zap.Stringer("reason", r))
	}
	return r == reason.OK
}

// keys is what the control center makes agents' tickets of.
func (d *guard) keys() *wire.PermitKeys {
	if d == nil || len(d.hidden)+len(d.quic)+len(d.cfg.Doors) == 0 {
		return nil
	}
	return d.permits.wire(uint16(d.cfg.KnockPort), d.cfg.SYNToken)
}

// changed takes over what is in force now; change is nil for a whole list.
// narrow: nothing that it gives was applied, but what it takes away holds.
func (d *guard) changed(change *access.Delta, narrow bool) {
	if d == nil || d.g.handing.Load() { // the new process has it
		return
	}
	locks := d.g.access.Locks()
	switch {
	case change == nil && narrow:
		d.permits.renew(d.g.access.Snapshot(), locks)
	case change == nil:
		d.permits.full(d.g.access.Snapshot(), locks)
	case narrow:
		d.permits.delta(&access.Delta{Remove: change.Remove, Locks: change.Locks}, locks)
	default:
		d.permits.delta(change, locks)
	}
}

// reload takes the settings of a new file into use.
func (d *guard) reload(cfg *Config) error {
	if d == nil || d.g.handing.Load() {
		return nil
	}
	blocked, err := readBlocklists(cfg.Guard.Blocklists)
	if err != nil {
		return fmt.Errorf("guard.blocklists: %w", err)
	}
	if d.tier == nil {
		return nil
	}
	return d.tier.Deny(blocked)
}

// tend moves tickets to their next time and raises alerts, until ctx is done.
func (d *guard) tend(ctx context.Context) {
	second, half := time.NewTicker(time.Second), time.NewTicker(30*time.Second)
	defer second.Stop()
	defer half.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-half.C:
			d.changed(nil, true)
		case <-second.C:
			d.checkRate()
		}
	}
}

// switchOn is `guard on`: for confirmWithin, or until confirm.
func (d *guard) switchOn(from netip.Addr) (time.Time, error) {
	switch {
	case d == nil:
		return time.Time{}, errors.New("switch guard on: none is configured (add guard.interface to gateway.yaml)")
	case d.tier == nil:
		return time.Time{}, fmt.Errorf("switch guard on: %w", d.lacks)
	case len(d.managed) == 0:
		return time.Time{}, errors.New("switch guard on: no management network is configured, nobody could come back (add guard.management)")
	case from.IsValid() && !d.tier.Management(from):
		return time.Time{}, fmt.Errorf("switch guard on: you come from %s, which may not manage: this session would live on, and be your last (add it to guard.management)", from)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.on.Load() {
		return d.until, nil
	}
	if err := d.attach(false); err != nil {
		return time.Time{}, err
	}
	d.until = d.g.now().Add(confirmWithin)
	d.pending = time.AfterFunc(confirmWithin, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.pending == nil {
			return
		}
		err := d.off()
		d.log.Warn("guard taken off: nobody confirmed it", zap.Error(err))
		d.g.audit.Write(&audit.Record{Time: d.g.now(), Kind: audit.System, GatewayID: d.g.id, Object: "guard", Allowed: err == nil, Result: "off, not confirmed"})
	})
	return d.until, nil
}

// confirm keeps a guard that was switched on, over restarts, too.
func (d *guard) confirm() error {
	if d == nil || !d.on.Load() {
		return errors.New("confirm guard: it is not on (run yumen guard on first)")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.tier.Pin(); err != nil {
		return err
	}
	if d.pending != nil {
		d.pending.Stop()
		d.pending, d.until = nil, time.Time{}
	}
	return storeFile(d.marker, []byte(d.g.now().UTC().Format(time.RFC3339)+"\n"))
}

// switchOff is `guard off`.
func (d *guard) switchOff() error {
	if d == nil {
		return errors.New("switch guard off: none is configured")
	}
	if d.cfg.Required {
		return errors.New("switch guard off: guard.required is set (remove it, restart, and switch off then)")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.off()
}

// off takes the guard off. The caller holds mu.
func (d *guard) off() error {
	if d.pending != nil {
		d.pending.Stop()
		d.pending, d.until = nil, time.Time{}
	}
	err := os.Remove(d.marker)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if d.tier != nil {
		err = errors.Join(err, d.tier.Detach())
	}
	d.on.Store(false)
	return err
}
