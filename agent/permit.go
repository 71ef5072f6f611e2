package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/permit"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/tunnel/spa"
	"github.com/yumen-zt/yumen/wire"
)

// permits connects to gateways, by the permit where there is one. Its methods
// may be called from any goroutine.
type permits struct {
	dial  spa.Dialer
	keys  *keystore.Store                   // beside which the long-lived ones are kept; nil: nowhere
	knows atomic.Bool                       // the control center is behind a guard
	refs  atomic.Pointer[[]wire.GatewayRef] // of the newest list; before it what was kept
	mu    sync.Mutex
	kept  *wire.HomePermits // guarded by mu
}

// newPermits makes those of an agent; keys may be nil.
func newPermits(keys *keystore.Store, ways []spa.Way, now func() time.Time) (*permits, error) {
	p := &permits{dial: spa.Dialer{Ways: ways, Now: now}, keys: keys}
	p.dial.Net.SetMultipathTCP(false)
	p.dial.Net.Timeout = connectTime
	if keys == nil {
		return p, nil
	}
	home, err := ctlclient.LoadHome(keys)
	if err != nil || home == nil {
		return p, err
	}
	var refs []wire.GatewayRef
	for _, g := range home.Gateways {
		refs = append(refs, wire.GatewayRef{ID: g.ID, Addresses: g.Addresses, Permit: &g.Permit})
	}
	p.refs.Store(&refs)
	p.kept = home
	return p, nil
}

// learn takes over what a resource list says of gateways, and keeps the
// long-lived permits.
func (p *permits) learn(refs []wire.GatewayRef) error {
	p.refs.Store(&refs)
	home := wire.Home(refs)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keys == nil || p.kept == nil && len(home.Gateways) == 0 || reflect.DeepEqual(p.kept, home) {
		return nil
	}
	if err := ctlclient.StoreHome(p.keys, home); err != nil {
		return err
	}
	p.kept = home
	return nil
}

// direct is how long the control center gets to answer who has not knocked,
// where a gateway on its host has a guard.
const direct = time.Second

// control connects to the control center. Where a gateway on its host has a
// guard and nobody answers, it knocks there first.
func (p *permits) control(ctx context.Context, network, addr string) (net.Conn, error) {
	w := p.before(ctx, addr)
	if w == nil {
		return p.dial.Net.DialContext(ctx, network, addr)
	}
	if !p.knows.Load() {
		quick, cancel := context.WithTimeout(ctx, direct)
		c, err := p.dial.Net.DialContext(quick, network, addr)
		cancel()
		var ne net.Error
		if err == nil || ctx.Err() != nil || !errors.As(err, &ne) || !ne.Timeout() {
			return c, err
		}
	}
	pass, err := passOf(w)
	if err != nil {
		return nil, err
	}
	pass.SYN = false // tokens are for the gateway's port alone
	c, _, err := p.dial.Dial(ctx, pass, addr)
	p.knows.Store(err == nil)
	return c, err
}

// before returns the permit of a gateway on the host of addr; nil when there is
// none.
func (p *permits) before(ctx context.Context, addr string) *wire.Permit {
	refs := p.refs.Load()
	host, _, err := net.SplitHostPort(addr)
	if refs == nil || err != nil {
		return nil
	}
	hosts := []string{host}
	if _, err := netip.ParseAddr(host); err != nil {
		more, _ := net.DefaultResolver.LookupHost(ctx, host) // whoever dials says what is wrong
		hosts = append(hosts, more...)
	}
	for _, g := range *refs {
		for _, a := range g.Addresses {
			if h, _, err := net.SplitHostPort(a); err == nil && g.Permit != nil && slices.Contains(hosts, h) {
				return g.Permit
			}
		}
	}
	return nil
}

// openPort stands for a gateway without a guard, in place of a way.
const openPort spa.Way = "open"

// permitKey is the context's key of a [shown]: one channel serves all gateways,
// and its dial function has no other argument.
type permitKey struct{}

// shown is the permit for the gateway that is dialed, and which way it went.
type shown struct {
	permit *wire.Permit // nil: the gateway has no guard
	way    spa.Way      // for the goroutine that dials, then for who gets the connection
}

func withPermit(ctx context.Context, s *shown) context.Context {
	return context.WithValue(ctx, permitKey{}, s)
}

func shownBy(ctx context.Context) *shown {
	if s, ok := ctx.Value(permitKey{}).(*shown); ok {
		return s
	}
	return &shown{}
}

// connect makes the connection below a tunnel, by the permit of ctx if it has
// one.
func (p *permits) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	s := shownBy(ctx)
	pass, err := passOf(s.permit)
	if err != nil {
		return nil, err
	}
	if pass == nil {
		s.way = openPort
		return p.dial.Net.DialContext(ctx, network, addr)
	}
	c, way, err := p.dial.Dial(ctx, pass, addr)
	s.way = way
	return c, err
}

// packets opens the socket of QUIC connections to a gateway, by the permit of s
// if there is one: small Initials leave room for it then. A socket that is
// opened later follows the device to another network, where no Initial goes
// first: a knock does.
func (p *permits) packets(s *shown) func(context.Context, *net.UDPAddr) (net.PacketConn, bool, error) {
	var before atomic.Bool
	return func(ctx context.Context, to *net.UDPAddr) (net.PacketConn, bool, error) {
		pass, err := passOf(s.permit)
		if err != nil {
			return nil, false, err
		}
		c, err := net.ListenUDP("udp", nil)
		if err != nil {
			return nil, false, err
		}
		moved := before.Swap(true)
		switch {
		case pass == nil && !moved:
			s.way = openPort
		case !moved:
			s.way = spa.Initial
		case pass != nil:
			if err := p.dial.KnockUDP(ctx, pass, to.AddrPort()); err != nil {
				return nil, false, errors.Join(err, c.Close())
			}
		}
		if pass == nil {
			return c, false, nil
		}
		return p.dial.PacketConn(c, pass), true, nil
	}
}

// passOf returns what spa needs of a permit; nil when there is none.
func passOf(w *wire.Permit) (*spa.Pass, error) {
	if w == nil {
		return nil, nil
	}
	if err := w.Check(); err != nil {
		return nil, fmt.Errorf("use the permit of the resource list: %w", err)
	}
	return &spa.Pass{Port: w.Knock, SYN: w.SYN, Tickets: ticketsOf(w.Tickets), Home: ticketsOf(w.Home)}, nil
}

func ticketsOf(list []wire.PermitTicket) (all []permit.Ticket) {
	for _, t := range list {
		all = append(all, permit.Ticket{Alias: [8]byte(t.Alias), Gate: [16]byte(t.Gate), Knock: [32]byte(t.Knock), From: t.From, Until: t.Until})
	}
	return all
}
