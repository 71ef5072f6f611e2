package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/bpf"
	"github.com/yumen-zt/yumen/bpf/nft"
	"github.com/yumen-zt/yumen/internal/privilege"
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
// nftables where the system cannot run that.
func openTier(c bpf.Config, xdp, nft opener) (tier, error) {
	if c.Mode == bpf.Nftables {
		return nft(c)
	}
	t, err := xdp(c)
	if err == nil || c.Mode != bpf.Auto || !errors.Is(err, bpf.ErrUnsupported) {
		return t, err
	}
	second, err2 := nft(c)
	if err2 != nil {
		return nil, errors.Join(err, fmt.Errorf("and the second tier: %w", err2))
	}
	if c.Logger != nil {
		c.Logger.Warn("guard runs in nftables, a flood costs more", zap.NamedError("xdp", err))
	}
	return second, nil
}

// folders are those that a gateway changes something in while it runs, and the
// file that programs which it starts open for writing.
func (c *Config) folders() []string {
	all := []string{c.StateDir, c.Keys.Dir, c.Outbox.Dir, c.Audit.Dir, os.DevNull}
	for _, file := range []string{c.Admin.Socket, c.Audit.Rights.Socket, c.Audit.File, c.AccessLog.File, c.Proxy.AssertionKeyFile} {
		if file != "" {
			all = append(all, filepath.Dir(file))
		}
	}
	if c.Login != nil {
		all = append(all, filepath.Dir(c.Login.CookieKeyFile))
	}
	if c.Guard != nil {
		all = append(all, cmp.Or(c.Guard.PinDir, "/sys/fs/bpf"))
	}
	return all
}

// Privileges is what the gateway still needs once New has returned.
func (g *Gateway) Privileges() (keep privilege.Config) {
	keep.Write = g.site.Load().cfg.folders()
	if g.guard == nil || g.guard.xdp == nil {
		return keep
	}
	if _, ok := g.guard.xdp.(*nft.Guard); ok {
		keep.Keep, keep.Exec = []int{privilege.NetAdmin}, true // for netlink, and the program nft
		return keep
	}
	// Kernels before 6.0 may ask for a capability at every call, not only when
	// programs and maps are made.
	if err := privilege.WithoutCapabilities(func() error { _, err := g.guard.xdp.Counters(); return err }); err != nil {
		keep.Keep = []int{privilege.BPF}
	}
	keep.BPF = true
	return keep
}
