// Package nft is the guard's second tier, for kernels where XDP cannot attach:
// rules and sets of nftables that give the same admission, behind the methods
// of [bpf.Guard]. A packet costs about three times as much here, a flood more.
//
//	guard.go     Open, Attach, Pin, Detach
//	rules.go     the two tables, as nft reads them
//	elements.go  deny lists, openings
//	tickets.go   tokens, which user space checks here
//	events.go    knocks and samples, which the kernel logs to us; counters
//	netlink.go   the messages to nf_tables and nfnetlink_log
//	sockets.go   connections from before
//
// The tables are loaded by the program nft, once; whatever changes afterwards
// goes to the kernel by netlink. The rules do nothing before their interface is
// an element of the set guarded. It is one for some seconds, renewed while this
// process lives, until [Guard.Pin]: so an unconfirmed guard ends with its
// process here, too, and a pinned one goes on, closed, without it.
//
// A knock, and a datagram or SYN that may end in a token, never reaches the
// stack: the kernel logs it to this process and drops it. The sender of a
// genuine first packet is let in with its retransmission.
package nft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/bpf"
)

// leaseFor is how long an unconfirmed guard outlives its process.
const leaseFor = 5 * time.Second

// Guard is one set of tables. Make it with [Open]. Its methods may be called
// from any goroutine.
type Guard struct {
	cfg   bpf.Config
	log   *zap.Logger
	index int // of the interface
	nl    *conn

	mu       sync.Mutex
	loaded   bool                      // guarded by mu; the tables are there
	attached bool                      // guarded by mu
	pinned   bool                      // guarded by mu
	denied   map[netip.Prefix]struct{} // guarded by mu
	merged   [2][]span                 // guarded by mu; what the interval sets hold
	tickets  map[[8]byte]*ticket       // guarded by mu
	opened   map[opening]time.Duration // guarded by mu; until when
	byTicket map[[8]byte][]opening     // guarded by mu

	own     [3][64]atomic.Uint64 // verdicts of user space
	weight  atomic.Uint32        // drops that one sample stands for
	samples atomic.Uint64
	knocks  atomic.Uint64
}

// Open checks that the kernel takes the rules of cfg, and takes over a guard
// that was pinned for the interface: its rules are replaced in one step.
func Open(cfg bpf.Config) (*Guard, error) {
	cfg.Complete()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("check guard: %w", err)
	}
	ifc, err := net.InterfaceByName(cfg.Interface)
	if err != nil {
		return nil, fmt.Errorf("open nftables guard: interface %s: %w", cfg.Interface, err)
	}
	nl, err := dial()
	if err != nil {
		return nil, fmt.Errorf("open nftables guard: %w: %w (nf_tables is needed: modprobe nf_tables)", bpf.ErrUnsupported, err)
	}
	g := &Guard{
		cfg: cfg, log: cfg.Logger, index: ifc.Index, nl: nl, denied: map[netip.Prefix]struct{}{}, tickets: map[[8]byte]*ticket{},
		opened: map[opening]time.Duration{}, byTicket: map[[8]byte][]opening{},
	}
	if err := g.takeOver(); err != nil {
		nl.close()
		return nil, err
	}
	return g, nil
}

// takeOver looks for tables from before.
func (g *Guard) takeOver() error {
	there, err := g.nl.elements(inet, g.table(), "guarded")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return explain("read", err)
	}
	for _, e := range there {
		if e.timeout == 0 && slices.Equal(e.key, hostOrder(uint32(g.index))) {
			g.attached, g.pinned = true, true
		}
	}
	if g.pinned {
		if err := g.recall(); err != nil {
			return err
		}
		return g.load()
	}
	return g.nft("-c", g.rules(false))
}

// table is the name of both tables.
func (g *Guard) table() string { return tableOf(g.cfg.Interface) }

func tableOf(iface string) string {
	return "yumen_" + strings.Map(func(r rune) rune {
		if r < 128 && (r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z') {
			return r
		}
		return '_'
	}, iface)
}

// load puts the rules into the kernel in one transaction; sets, counters and
// whether the guard is in force stay when they are there already.
func (g *Guard) load() error {
	fresh := !g.pinned
	if err := g.nft("", g.rules(false)); err != nil {
		// Sets of another size cannot be kept.
		g.log.Warn("guard tables made anew, counters begin empty", zap.Error(err))
		if err := g.nft("", g.rules(true)); err != nil {
			return err
		}
		fresh = true
	}
	g.loaded = true
	return g.fill(fresh)
}

// nft feeds text to the program nft.
func (g *Guard) nft(flag, text string) error {
	path, err := Program()
	if err != nil {
		return fmt.Errorf("load nftables guard: %w: %w (install the package nftables)", bpf.ErrUnsupported, err)
	}
	args := []string{"-f", "-"}
	if flag != "" {
		args = append([]string{flag}, args...)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return explain("load", fmt.Errorf("nft: %w: %s", err, first))
	}
	return nil
}

// Program returns where nft is.
func Program() (string, error) {
	path, err := exec.LookPath("nft")
	for _, p := range []string{"/usr/sbin/nft", "/sbin/nft"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(p)
	}
	return path, err
}

// explain adds what is to be done about a fault of the kernel's.
func explain(verb string, err error) error {
	hint := "nf_tables with conntrack, limit, log and counters is needed"
	if errors.Is(err, os.ErrPermission) || strings.Contains(err.Error(), "Operation not permitted") {
		hint = "CAP_NET_ADMIN is needed, or root"
	}
	return fmt.Errorf("%s nftables guard: %w: %w (%s)", verb, bpf.ErrUnsupported, err, hint)
}

// Attach puts the rules in force; until [Guard.Pin] they end with this process.
func (g *Guard) Attach() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.attached {
		return nil
	}
	if !g.loaded { // connections are tracked from here on
		if err := g.load(); err != nil {
			return err
		}
	}
	if err := g.keepSockets(); err != nil {
		return err
	}
	if err := g.lease(leaseFor); err != nil {
		return err
	}
	g.attached = true
	return nil
}

// lease keeps the rules in force for d; 0: for good. The caller holds mu.
func (g *Guard) lease(d time.Duration) error {
	key := hostOrder(uint32(g.index))
	var b batch
	for _, f := range []uint8{inet, netdev} {
		b.add(f, g.table(), "guarded", element{key: key}) // a set has no other way to a new time
		b.remove(f, g.table(), "guarded", element{key: key})
		b.add(f, g.table(), "guarded", element{key: key, timeout: d})
	}
	if err := g.nl.commit(&b); err != nil {
		return fmt.Errorf("keep nftables guard on %s: %w", g.cfg.Interface, err)
	}
	return nil
}

// renew prolongs an unconfirmed guard.
func (g *Guard) renew() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.attached || g.pinned {
		return nil
	}
	return g.lease(leaseFor)
}

// Pin keeps the attached guard beyond this process.
func (g *Guard) Pin() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.attached {
		return errors.New("pin guard: it is not attached")
	}
	if g.pinned {
		return nil
	}
	if err := g.lease(0); err != nil {
		return err
	}
	g.pinned = true
	return nil
}

// Detach takes the tables out of the kernel.
func (g *Guard) Detach() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.loaded {
		return nil
	}
	if err := removeTables(g.nl, g.table()); err != nil {
		return fmt.Errorf("detach nftables guard from %s: %w", g.cfg.Interface, err)
	}
	g.loaded, g.attached, g.pinned = false, false, false
	clear(g.opened)
	clear(g.byTicket)
	return nil
}

// Close gives back what Open took. A pinned guard goes on.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var err error
	if g.loaded && !g.pinned {
		err = removeTables(g.nl, g.table())
		g.loaded, g.attached = false, false
	}
	return errors.Join(err, g.nl.close())
}

// State returns how g stands.
func (g *Guard) State() bpf.State {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := bpf.State{Attached: g.attached, Pinned: g.pinned, Interface: g.cfg.Interface}
	if g.attached {
		s.Mode = bpf.Nftables
	}
	return s
}

// Management reports whether a may manage.
func (g *Guard) Management(a netip.Addr) bool {
	return slices.ContainsFunc(g.cfg.Management, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
}

// Remove takes the tables of an interface away without their process. It
// reports whether there were any.
func Remove(iface string) (bool, error) {
	nl, err := dial()
	if err != nil {
		return false, nil //nolint:nilerr // without nf_tables there are none
	}
	defer nl.close()
	if _, err := nl.elements(inet, tableOf(iface), "guarded"); err != nil {
		return false, nil //nolint:nilerr // no table
	}
	if err := removeTables(nl, tableOf(iface)); err != nil {
		return false, fmt.Errorf("remove nftables guard from %s: %w", iface, err)
	}
	return true, nil
}

// removeTables takes both tables away in one transaction.
func removeTables(nl *conn, table string) error {
	var b batch
	for _, f := range []uint8{inet, netdev} {
		b.addTable(f, table) // so that there is one
		b.removeTable(f, table)
	}
	return nl.commit(&b)
}
