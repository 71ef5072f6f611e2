package bpf

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Guard is one loaded guard. Make it with [Open]. Its methods may be called
// from any goroutine.
type Guard struct {
	cfg   Config
	log   *zap.Logger
	spec  *ebpf.CollectionSpec
	maps  map[string]*ebpf.Map
	tune  *words64 // struct tuning
	bits  *words64
	known *words64
	ports *words64 // that something may be open at
	flows flows
	deny  denied

	mu     sync.Mutex
	prog   *ebpf.Program // guarded by mu
	link   link.Link     // guarded by mu; nil: not attached
	mode   Mode          // guarded by mu
	pinned bool          // guarded by mu
	former string        // guarded by mu; folder of pins of another layout, that the link is still in

	sampled   uint64        // drops at the last adjustment; for the goroutine of Run
	published uint64        // packets to published ports, then; for the goroutine of Run
	stormy    time.Duration // when they were last many; for the goroutine of Run
	sources   int           // that the prefilter was filled with; for the goroutine of Run
	shown     atomic.Uint64 // sources since then
	stats     eventStats
}

// Open loads program and maps. Maps and link of a guard that is pinned for the
// interface are taken over as they are: it goes on with its old program until
// [Guard.Attach]. Maps of another size are made anew.
func Open(cfg Config) (*Guard, error) {
	spec, err := loadGuard()
	if err != nil {
		return nil, explain(err)
	}
	return openSpec(spec, cfg)
}

// openSpec is Open with another program than the committed one.
func openSpec(spec *ebpf.CollectionSpec, cfg Config) (*Guard, error) {
	cfg.Complete()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("check guard: %w", err)
	}
	g := &Guard{cfg: cfg, log: cfg.Logger, spec: spec}
	dir := cfg.folder()
	old, err := pinnedMaps(spec, dir)
	if err != nil {
		return nil, err
	}
	coll, err := load(spec, &cfg, old)
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		g.log.Warn("guard maps made anew, openings and counters begin empty", zap.Error(err))
		closeAll(old)
		old = nil
		coll, err = load(spec, &cfg, nil)
	}
	closeAll(old) // the collection has descriptors of its own
	if err != nil {
		return nil, explain(err)
	}
	g.maps, g.prog = coll.Maps, coll.Programs[guardProgGuard]
	if err := g.open(); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

func (g *Guard) open() (err error) {
	for _, m := range []struct {
		name string
		to   **words64
	}{{guardMapTune, &g.tune}, {guardMapDenyBits, &g.bits}, {guardMapKnown, &g.known}, {guardMapOpenable, &g.ports}, {guardMapFlows, &g.flows.slots}, {guardMapFlowSources, &g.flows.sources}} {
		if *m.to, err = mapWords(g.maps[m.name]); err != nil {
			return fmt.Errorf("map guard memory %s: %w", m.name, err)
		}
	}
	if g.seed() == [2]uint64{} {
		var b [48]byte
		_, _ = rand.Read(b[:]) // never fails
		for i := range 4 {
			g.tune.store(tuneSecret+i, binary.LittleEndian.Uint64(b[16+8*i:])|1)
		}
		g.tune.store(tuneSeed+1, binary.LittleEndian.Uint64(b[8:]))
		g.tune.store(tuneSeed, binary.LittleEndian.Uint64(b[:])|1) // last: what stands here tells that all do
		g.tune.store32(tuneSample, noSamples)                      // until Run takes them
		g.tune.store32(tuneShift, shiftFor(0))
		g.tune.store32(tuneShift+1, shiftFor(0))
	}
	if err := g.deny.recall(g); err != nil {
		return err
	}
	return g.takeOver()
}

// load makes the collection of cfg over the maps of old.
func load(spec *ebpf.CollectionSpec, cfg *Config, old map[string]*ebpf.Map) (*ebpf.Collection, error) {
	spec = spec.Copy()
	for name, n := range map[string]int{
		guardMapDenyExact: cfg.Sizes.Denied, guardMapDenyTrie: cfg.Sizes.Networks, guardMapTickets: cfg.Sizes.Tickets,
		guardMapOpenings: cfg.Sizes.Openings, guardMapFlows: cfg.Sizes.buckets(), guardMapFlowSources: cfg.Sizes.buckets() * flowWays,
		guardMapRates: cfg.Sizes.Sources,
	} {
		spec.Maps[name].MaxEntries = uint32(n)
	}
	if err := spec.Variables[guardVarSettings].Set(cfg.settings()); err != nil {
		return nil, err
	}
	return ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: old})
}

// explain adds to a fault of the kernel's what is to be done about it.
func explain(err error) error {
	var ve *ebpf.VerifierError
	switch {
	case errors.As(err, &ve):
		return fmt.Errorf("load guard program: %w: %w (Linux 5.18 or newer is needed)", ErrUnsupported, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("load guard program: %w: %w (CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed, or root)", ErrUnsupported, err)
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL), errors.Is(err, unix.E2BIG), errors.Is(err, unix.ENOSYS):
		// Kernels that know no such map, helper or flag say so by one of these.
		return fmt.Errorf("load guard program: %w: %w (Linux 5.18 or newer with BPF is needed)", ErrUnsupported, err)
	}
	return fmt.Errorf("load guard program: %w", err)
}

func closeAll(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		m.Close()
	}
}

// Attach puts the program in force: in place of the one that hangs there, in
// one step, or newly. A new one is gone when this process ends, until
// [Guard.Pin].
func (g *Guard) Attach() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.link != nil {
		if err := g.link.Update(g.prog); err != nil {
			return fmt.Errorf("update guard on %s: %w", g.cfg.Interface, err)
		}
		if g.pinned {
			return g.pin() // maps that were made anew
		}
		return nil
	}
	ifc, err := net.InterfaceByName(g.cfg.Interface)
	if err != nil {
		return fmt.Errorf("attach guard: %w (set guard.interface to one that ip link shows)", err)
	}
	attach := func(m Mode, f link.XDPAttachFlags) error {
		l, err := link.AttachXDP(link.XDPOptions{Program: g.prog, Interface: ifc.Index, Flags: f})
		if err == nil {
			g.link, g.mode = l, m
		}
		return err
	}
	if g.cfg.Mode != Generic {
		err = attach(Native, link.XDPDriverMode)
		if err == nil {
			return nil
		}
		if g.cfg.Mode == Native {
			return fmt.Errorf("attach guard to %s in native mode: %w (the driver may not have it: set guard.mode to generic)", g.cfg.Interface, err)
		}
	}
	if e := attach(Generic, link.XDPGenericMode); e != nil {
		return fmt.Errorf("attach guard to %s: %w: %w (another XDP program may hang there: ip link show %s)", g.cfg.Interface, ErrUnsupported, errors.Join(err, e), g.cfg.Interface)
	}
	if g.cfg.Mode == Auto {
		g.log.Warn("guard runs in generic mode, a drop costs about three times as much", zap.String("interface", g.cfg.Interface), zap.NamedError("native", err))
	}
	return nil
}

// Configure puts another configuration in force by one update of the link.
// Interface, mode, sizes and pin folder stay as they are.
func (g *Guard) Configure(cfg Config) error {
	cfg.Interface, cfg.Mode, cfg.Sizes, cfg.PinDir, cfg.Logger = g.cfg.Interface, g.cfg.Mode, g.cfg.Sizes, g.cfg.PinDir, g.cfg.Logger
	cfg.Complete()
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("check guard: %w", err)
	}
	kept := map[string]*ebpf.Map{}
	for name, m := range g.maps {
		if name[0] != '.' {
			kept[name] = m
		}
	}
	coll, err := load(g.spec, &cfg, kept)
	if err != nil {
		return explain(err)
	}
	next := coll.DetachProgram(guardProgGuard)
	coll.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.link != nil {
		if err := g.link.Update(next); err != nil {
			next.Close()
			return fmt.Errorf("update guard on %s: %w", g.cfg.Interface, err)
		}
	}
	g.prog.Close()
	g.prog, g.cfg = next, cfg
	return nil
}

// Detach takes the guard off the interface and removes its pins.
func (g *Guard) Detach() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.link == nil {
		return nil
	}
	var err error
	if g.pinned {
		err = g.link.Unpin()
	}
	err = errors.Join(err, detach(g.link), g.link.Close())
	g.link, g.pinned, g.mode = nil, false, Auto
	for _, dir := range []string{g.cfg.folder(), g.former} {
		if dir != "" {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	g.former = ""
	if err != nil {
		return fmt.Errorf("detach guard from %s: %w", g.cfg.Interface, err)
	}
	return nil
}

// Close gives back what Open took. A pinned guard goes on.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var err error
	if g.link != nil {
		err = g.link.Close()
		g.link = nil
	}
	if g.prog != nil {
		g.prog.Close()
	}
	for _, w := range []*words64{g.tune, g.bits, g.known, g.ports, g.flows.slots, g.flows.sources} {
		w.close()
	}
	closeAll(g.maps)
	return err
}

// State is how a guard stands.
type State struct {
	Attached  bool   `json:"attached"`
	Pinned    bool   `json:"pinned"` // goes on without this process
	Mode      Mode   `json:"mode,omitzero"`
	Interface string `json:"interface"`
}

// State returns how g stands.
func (g *Guard) State() State {
	g.mu.Lock()
	defer g.mu.Unlock()
	return State{g.link != nil, g.pinned, g.mode, g.cfg.Interface}
}

// Management reports whether a may manage.
func (g *Guard) Management(a netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.ContainsFunc(g.cfg.Management, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
}
