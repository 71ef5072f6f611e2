package agent

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/yumen-zt/yumen/crypto/permit"
	"github.com/yumen-zt/yumen/tunnel/spa"
	"github.com/yumen-zt/yumen/wire"
)

// permits connects to gateways, by the permit where there is one. Its methods
// may be called from any goroutine.
type permits struct {
	dial spa.Dialer
	last atomic.Pointer[spa.Way] // how the last connection was made
}

// openPort stands for a gateway without a guard, in place of a way.
const openPort spa.Way = "open"

// permitKey is the context's key of the permit for the gateway that is dialed:
// one channel serves all gateways, and its dial function has no other argument.
type permitKey struct{}

func withPermit(ctx context.Context, w *wire.Permit) context.Context {
	if w == nil {
		return ctx
	}
	return context.WithValue(ctx, permitKey{}, w)
}

// connect makes the connection below a tunnel, by the permit of ctx if it has
// one.
func (p *permits) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	way := openPort
	var c net.Conn
	w, _ := ctx.Value(permitKey{}).(*wire.Permit)
	pass, err := passOf(w)
	if err == nil && pass != nil {
		c, way, err = p.dial.Dial(ctx, pass, addr)
	} else if err == nil {
		c, err = p.dial.Net.DialContext(ctx, network, addr)
	}
	if err != nil {
		return nil, err
	}
	p.last.Store(&way)
	return c, nil
}

// packets opens the socket of QUIC connections to addr, by the permit of ctx if it
// has one: small Initials leave room for it then.
func (p *permits) packets(ctx context.Context, _ *net.UDPAddr) (net.PacketConn, bool, error) {
	w, _ := ctx.Value(permitKey{}).(*wire.Permit)
	pass, err := passOf(w)
	if err != nil {
		return nil, false, err
	}
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		return nil, false, err
	}
	way := openPort
	if pass == nil {
		p.last.Store(&way)
		return c, false, nil
	}
	way = spa.Initial
	p.last.Store(&way)
	return p.dial.PacketConn(c, pass), true, nil
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

// Way returns how the last connection was made; empty before the first.
func (p *permits) Way() string {
	if w := p.last.Load(); w != nil {
		return string(*w)
	}
	return ""
}
