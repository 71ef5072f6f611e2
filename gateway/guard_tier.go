package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/bpf"
	"github.com/yumen-zt/yumen/bpf/nft"
)

// tier is what the guard runs in: XDP, or nftables where XDP cannot run. Its
// methods may be called from any goroutine.
type tier interface {
	Attach() error // until the process ends, or Pin
	Pin() error
	Detach() error
	Close() error // a pinned one goes on
	State() bpf.State

	Deny(networks []netip.Prefix) error // the whole list
	Denied() int
	AddTicket(t bpf.Ticket) error
	RemoveTicket(alias [8]byte) error
	Tickets(f func(alias [8]byte, until time.Duration)) error
	OpenPort(source netip.Addr, port uint16, protocol uint8, alias [8]byte, d time.Duration) error

	Counters() (bpf.Counters, error)
	Management(a netip.Addr) bool
	Run(ctx context.Context, onKnock func(bpf.Knock), onDrop func(bpf.Drop)) error
}

// Names of what admits.
const (
	tierXDP       = "xdp"
	tierNftables  = "nftables"
	tierUserSpace = "user_space"
)

func nameOf(t tier) string {
	switch t.(type) {
	case nil:
		return tierUserSpace
	case *nft.Guard:
		return tierNftables
	}
	return tierXDP
}

// opener loads a tier.
type opener func(bpf.Config) (tier, error)

func openXDP(c bpf.Config) (tier, error) {
	g, err := bpf.Open(c)
	if err != nil {
		return nil, err // not a nil pointer in an interface
	}
	return g, nil
}

func openNft(c bpf.Config) (tier, error) {
	g, err := nft.Open(c)
	if err != nil {
		return nil, err
	}
	return g, nil
}

// openTier loads the tier that c chooses. Without a choice it is XDP, and
// nftables where the system cannot run that, or cannot attach it.
func openTier(c bpf.Config, xdp, nft opener) (tier, error) {
	switch c.Mode {
	case bpf.Auto:
	case bpf.Nftables:
		return nft(c)
	default:
		return xdp(c)
	}
	t := &tiers{cfg: c, second: nft, tickets: map[[8]byte]bpf.Ticket{}, moved: make(chan struct{})}
	var err error
	if t.tier, err = xdp(c); err == nil {
		return t, nil
	}
	if err := t.move(err); err != nil {
		return nil, err
	}
	return t, nil
}

// tiers is XDP until it turns out that it cannot run here, and nftables from
// then on. What the first was given it keeps for the second.
type tiers struct {
	cfg    bpf.Config
	second opener
	moved  chan struct{} // closed when the second is in use

	mu      sync.Mutex
	tier    tier                   // guarded by mu
	why     error                  // guarded by mu; what the first lacks; nil while it is in use
	busy    bool                   // guarded by mu; Run works on the first
	denied  []netip.Prefix         // guarded by mu
	tickets map[[8]byte]bpf.Ticket // guarded by mu
}

// running returns the tier that is in use, and why it is not the one that was
// tried before it.
func running(t tier) (tier, error) {
	if both, ok := t.(*tiers); ok {
		both.mu.Lock()
		defer both.mu.Unlock()
		return both.tier, both.why
	}
	return t, nil
}

// move opens the second tier when err says that the first cannot run here; else
// it returns err. The caller holds mu, or is the only one.
func (t *tiers) move(err error) error {
	if t.why != nil || !errors.Is(err, bpf.ErrUnsupported) {
		return err
	}
	next, err2 := t.second(t.cfg)
	if err2 != nil {
		return errors.Join(err, fmt.Errorf("and the second tier: %w", err2))
	}
	err2 = next.Deny(t.denied)
	for _, k := range t.tickets {
		err2 = errors.Join(err2, next.AddTicket(k))
	}
	if err2 != nil {
		return errors.Join(err, fmt.Errorf("and the second tier: %w", errors.Join(err2, next.Close())))
	}
	if t.tier != nil && !t.busy {
		t.closeFirst(t.tier)
	}
	t.tier, t.why = next, err
	close(t.moved)
	if t.cfg.Logger != nil {
		t.cfg.Logger.Warn("guard runs in nftables, a flood costs more", zap.NamedError("xdp", err))
	}
	return nil
}

func (t *tiers) closeFirst(first tier) {
	if err := first.Close(); err != nil {
		t.cfg.Logger.Warn("first tier of the guard not closed", zap.Error(err))
	}
}

// Attach takes the second tier where the first loads but cannot attach.
func (t *tiers) Attach() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.tier.Attach()
	if err == nil {
		return nil
	}
	if err := t.move(err); err != nil {
		return err
	}
	return t.tier.Attach()
}

func (t *tiers) Deny(networks []netip.Prefix) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.denied = networks
	return t.tier.Deny(networks)
}

func (t *tiers) AddTicket(k bpf.Ticket) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.why == nil {
		t.tickets[k.Alias] = k
	}
	return t.tier.AddTicket(k)
}

func (t *tiers) RemoveTicket(alias [8]byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.tickets, alias)
	return t.tier.RemoveTicket(alias)
}

// Run goes on with the second tier when that takes over.
func (t *tiers) Run(ctx context.Context, onKnock func(bpf.Knock), onDrop func(bpf.Drop)) error {
	for {
		t.mu.Lock()
		now, why := t.tier, t.why
		t.busy = why == nil // the first is not closed under its work
		t.mu.Unlock()
		if why != nil {
			return now.Run(ctx, onKnock, onDrop)
		}
		first, cancel := context.WithCancel(ctx)
		stop := make(chan struct{})
		go func() {
			defer close(stop)
			select {
			case <-t.moved:
				cancel()
			case <-first.Done():
			}
		}()
		err := now.Run(first, onKnock, onDrop)
		cancel()
		<-stop
		t.mu.Lock()
		moved := t.why != nil
		t.busy = false
		t.mu.Unlock()
		if !moved {
			return err
		}
		t.closeFirst(now) // what it says of its end means nothing
	}
}

func (t *tiers) now() tier {
	now, _ := running(t)
	return now
}

func (t *tiers) Pin() error                      { return t.now().Pin() }
func (t *tiers) Detach() error                   { return t.now().Detach() }
func (t *tiers) Close() error                    { return t.now().Close() }
func (t *tiers) State() bpf.State                { return t.now().State() }
func (t *tiers) Denied() int                     { return t.now().Denied() }
func (t *tiers) Counters() (bpf.Counters, error) { return t.now().Counters() }
func (t *tiers) Management(a netip.Addr) bool    { return t.now().Management(a) }

func (t *tiers) Tickets(f func(alias [8]byte, until time.Duration)) error { return t.now().Tickets(f) }

func (t *tiers) OpenPort(source netip.Addr, port uint16, protocol uint8, alias [8]byte, d time.Duration) error {
	return t.now().OpenPort(source, port, protocol, alias, d)
}

// admitsIn returns the name of the tier that admits, and why it is not the one
// that would have been better.
func (d *guard) admitsIn() (name, why string) {
	if d.tier == nil {
		if d.lacks != nil {
			why = d.lacks.Error()
		}
		return tierUserSpace, why
	}
	now, err := running(d.tier)
	if err != nil {
		why = err.Error()
	}
	return nameOf(now), why
}
