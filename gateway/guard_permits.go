package gateway

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/bpf"
	"github.com/yumen-zt/yumen/crypto/permit"
	"github.com/yumen-zt/yumen/tunnel/spa"
	"github.com/yumen-zt/yumen/wire"
)

// devicePermits turns grants and locks into tickets that count: each device
// with a row, none of whose locks is in force, has a ticket for the present and
// the coming time. What a list takes away is taken from the guard before the
// list is acknowledged.
type devicePermits struct {
	gatewayID string
	root      permit.Root
	life      time.Duration
	port      uint16    // that a ticket opens without a knock
	protocol  uint8     // the same; 0: TCP and UDP
	start     time.Time // tokens of before may have been used
	now       func() time.Time
	log       *zap.Logger
	book      *spa.Book
	tier      tier // nil: admission in user space alone

	mu     sync.Mutex
	users  map[string]map[string]struct{} // guarded by mu; users of a device with a row
	shut   map[policy.Lock]struct{}       // guarded by mu; locks of users and devices, by kind and id
	have   map[string][]permit.Ticket     // guarded by mu; what is in force, by device
	keys   []permit.Key                   // guarded by mu
	failed int                            // guarded by mu; tickets that found no room
	known  bool                           // guarded by mu; a whole list was seen
}

// loadRoot reads the gateway's secret, or makes it.
func loadRoot(state string) (root permit.Root, err error) {
	path := filepath.Join(state, "permit.key")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		root = permit.NewRoot()
		return root, storeFile(path, root[:])
	}
	if err != nil {
		return root, fmt.Errorf("read key of permits: %w", err)
	}
	if err := private("state_dir: permit.key", path); err != nil {
		return root, err
	}
	if len(b) != len(root) {
		return root, fmt.Errorf("read key of permits %s: %d bytes instead of %d (remove it, agents get new tickets)", path, len(b), len(root))
	}
	return permit.Root(b), nil
}

// wire returns what the control center makes tickets of.
func (p *devicePermits) wire(knock uint16, syn bool) *wire.PermitKeys {
	out := &wire.PermitKeys{Knock: knock, SYN: syn}
	for _, k := range p.root.Times(p.now(), p.life) {
		out.Keys = append(out.Keys, wire.PermitKey(k))
	}
	for _, k := range p.root.Times(p.now(), permit.HomeLife) {
		out.Home = append(out.Home, wire.PermitKey(k))
	}
	return out
}

// pairs returns the users of each device that have a row in s now.
func (p *devicePermits) pairs(s *policy.Snapshot) map[string]map[string]struct{} {
	users := map[string]map[string]struct{}{}
	for user, device := range s.Pairs(p.now()) {
		if users[device] == nil {
			users[device] = map[string]struct{}{}
		}
		users[device][user] = struct{}{}
	}
	return users
}

// renew moves tickets to the present time. It takes away what has ended in s
// and adds nobody: what was narrowed since s stays away.
func (p *devicePermits) renew(s *policy.Snapshot, locks []policy.Lock) {
	users := p.pairs(s)
	p.mu.Lock()
	defer p.mu.Unlock()
	for device, have := range p.users {
		for user := range have {
			if _, ok := users[device][user]; !ok {
				delete(have, user)
			}
		}
		if len(have) == 0 {
			delete(p.users, device)
		}
	}
	p.setLocks(locks)
	p.settle()
}

// full takes over a whole list.
func (p *devicePermits) full(s *policy.Snapshot, locks []policy.Lock) {
	users := p.pairs(s)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users = users
	p.setLocks(locks)
	p.settle()
	if !p.known && !s.NoList() {
		p.known = true
		p.sweep()
	}
}

// delta takes over a change: locks are those in force after it.
func (p *devicePermits) delta(d *access.Delta, locks []policy.Lock) {
	p.mu.Lock()
	defer p.mu.Unlock()
	touched := map[string]struct{}{}
	for _, r := range d.Remove {
		delete(p.users[r.DeviceID], r.UserID)
		if len(p.users[r.DeviceID]) == 0 {
			delete(p.users, r.DeviceID)
		}
		touched[r.DeviceID] = struct{}{}
	}
	for _, r := range d.Grants {
		g := &r.Grant
		if p.users[g.DeviceID] == nil {
			p.users[g.DeviceID] = map[string]struct{}{}
		}
		p.users[g.DeviceID][g.UserID] = struct{}{}
		touched[g.DeviceID] = struct{}{}
	}
	if len(d.Locks)+len(d.Unlocks) > 0 {
		p.setLocks(locks)
		p.settle()
		return
	}
	for device := range touched {
		p.settleDevice(device)
	}
}

// setLocks keeps what shuts a device out. The caller holds mu.
func (p *devicePermits) setLocks(locks []policy.Lock) {
	p.shut = map[policy.Lock]struct{}{}
	now := p.now()
	for _, l := range locks {
		if (l.Kind == "user" || l.Kind == "device") && (l.Until.IsZero() || now.Before(l.Until)) {
			p.shut[policy.Lock{Kind: l.Kind, ID: l.ID}] = struct{}{}
		}
	}
}

// settle makes what counts what should: first what goes, then what comes. The
// caller holds mu.
func (p *devicePermits) settle() {
	p.keys = p.counting()
	for device := range p.have {
		if !p.may(device) {
			p.settleDevice(device)
		}
	}
	for device := range p.users {
		p.settleDevice(device)
	}
}

// counting returns the keys whose tickets count or soon will, long-lived ones
// last.
func (p *devicePermits) counting() []permit.Key {
	now := p.now()
	all := append(p.root.Counting(now, p.life), p.root.Counting(now, permit.HomeLife)...)
	return slices.DeleteFunc(all, func(k permit.Key) bool { return k.From.After(now.Add(p.life)) })
}

func (p *devicePermits) may(device string) bool {
	if _, ok := p.shut[policy.Lock{Kind: "device", ID: device}]; ok {
		return false
	}
	for user := range p.users[device] {
		if _, ok := p.shut[policy.Lock{Kind: "user", ID: user}]; !ok {
			return true
		}
	}
	return false
}

// settleDevice does the same for one device. The caller holds mu.
func (p *devicePermits) settleDevice(device string) {
	had := p.have[device]
	if !p.may(device) {
		for _, t := range had {
			p.remove(t)
		}
		delete(p.have, device)
		return
	}
	now := p.now()
	var keep []permit.Ticket
	for _, t := range had {
		if now.Before(t.Until) {
			keep = append(keep, t)
		} else {
			p.remove(t)
		}
	}
	for _, k := range p.keys {
		if !has(keep, k) && now.Before(k.Until) {
			t := k.Ticket(p.gatewayID, device)
			p.add(device, t)
			keep = append(keep, t)
		}
	}
	p.have[device] = keep
}

func has(all []permit.Ticket, k permit.Key) bool {
	for _, t := range all {
		if t.From.Equal(k.From) && t.Until.Equal(k.Until) {
			return true
		}
	}
	return false
}

func (p *devicePermits) add(device string, t permit.Ticket) {
	p.book.Add(device, t)
	if p.tier == nil {
		return
	}
	b := bpf.Ticket{Alias: t.Alias, Key: t.Gate, Until: bpf.Now() + t.Until.Sub(p.now()), Port: p.port, Protocol: p.protocol, Knock: true}
	if t.Home() {
		b.Port = 0 // it knocks only
	}
	if p.start.After(t.From) {
		b.Used = spa.Counter(&t, p.start)
	}
	if err := p.tier.AddTicket(b); err != nil {
		if p.failed++; p.failed == 1 {
			p.log.Error("ticket not in force, its device stays outside", zap.String("device_id", device), zap.Error(err))
		}
	}
}

func (p *devicePermits) remove(t permit.Ticket) {
	if p.tier != nil {
		if err := p.tier.RemoveTicket(t.Alias); err != nil {
			p.log.Error("ticket not taken away", zap.Error(err))
		}
	}
	p.book.Remove(t.Alias)
}

// sweep takes tickets away that a guard which was taken over has from before.
// The caller holds mu.
func (p *devicePermits) sweep() {
	if p.tier == nil {
		return
	}
	mine := map[[8]byte]struct{}{}
	for _, all := range p.have {
		for _, t := range all {
			mine[t.Alias] = struct{}{}
		}
	}
	var old []permit.Ticket
	err := p.tier.Tickets(func(alias [8]byte, _ time.Duration) {
		if _, ok := mine[alias]; !ok {
			old = append(old, permit.Ticket{Alias: alias})
		}
	})
	if err != nil {
		p.log.Error("old tickets not read", zap.Error(err))
	}
	for _, t := range old {
		p.remove(t)
	}
}

// count returns how many devices have tickets, and how many tickets found no
// room.
func (p *devicePermits) count() (devices, failed int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.have), p.failed
}
