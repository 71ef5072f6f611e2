package spa

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/yumen-zt/yumen/crypto/permit"
)

// Way is how a permit gets to the guard.
type Way string

// The ways.
const (
	Knock   Way = "knock"   // a datagram before the connection, which user space checks, too
	SYN     Way = "syn"     // a token in the SYN's payload opens one 5-tuple
	Initial Way = "initial" // a token behind the Initial of QUIC opens one 5-tuple
	Home    Way = "home"    // a knock with the long-lived key: no ticket counts any more
)

// CheckWays reports whether a [Dialer] can take ways.
func CheckWays(ways []Way) error {
	for i, w := range ways {
		if w != Knock && w != SYN || slices.Contains(ways[:i], w) {
			return fmt.Errorf("%q is neither %s nor %s, or stands twice", w, SYN, Knock)
		}
	}
	return nil
}

// settle is how long a knock gets to be judged before the connection's first
// packet follows it.
const settle = 15 * time.Millisecond

// attempts are the times that a connection gets before it is begun anew with a
// fresh permit: either may have been lost.
var attempts = []time.Duration{300 * time.Millisecond, 700 * time.Millisecond, 1500 * time.Millisecond, 3 * time.Second}

// homeAttempt is the attempt that uses the long-lived key although a ticket
// counts here: at the gateway it may not.
const homeAttempt = 2

// ErrNoTicket means that no ticket counts now.
var ErrNoTicket = errors.New("no ticket counts now (the control center gives them with the resource list)")

// Dialer connects through guards. The zero value is ready; its methods may be
// called from any goroutine.
type Dialer struct {
	Net  net.Dialer
	Ways []Way            // in order, each once, the last one again; default Knock alone
	Now  func() time.Time // default time.Now

	counters counters
}

func (d *Dialer) now() time.Time {
	if d.Now != nil {
		return d.Now()
	}
	return time.Now()
}

// ways returns what is to be tried at a gateway, at least one.
func (d *Dialer) ways(pass *Pass) []Way {
	ways := slices.DeleteFunc(slices.Clone(d.Ways), func(w Way) bool { return w == SYN && !pass.SYN })
	if len(ways) == 0 {
		return []Way{Knock}
	}
	return ways
}

// Dial connects to addr (host:port) over TCP with pass, and says which way got
// in.
func (d *Dialer) Dial(ctx context.Context, pass *Pass, addr string) (net.Conn, Way, error) {
	ways := d.ways(pass)
	var errs []error
	for i, wait := range attempts {
		way := ways[min(i, len(ways)-1)]
		t := pass.at(d.now())
		if h := longest(pass.Home, d.now()); h != nil && (t == nil || i == homeAttempt) {
			way, t = Home, h
		}
		if t == nil {
			errs = append(errs, ErrNoTicket)
			break
		}
		c, err := d.attempt(ctx, pass, t, way, addr, wait)
		if err == nil {
			return c, way, nil
		}
		errs = append(errs, fmt.Errorf("by %s: %w", way, err))
		if ctx.Err() != nil {
			break
		}
		var ne net.Error
		if timeout := errors.As(err, &ne) && ne.Timeout(); !timeout && !errors.Is(err, errors.ErrUnsupported) {
			break // somebody answered: it is not the guard
		}
	}
	return nil, "", fmt.Errorf("dial %s with a permit: %w", addr, errors.Join(errs...))
}

func (d *Dialer) attempt(ctx context.Context, pass *Pass, t *permit.Ticket, way Way, addr string, wait time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, settle+wait)
	defer cancel()
	// One family and address for both: what the knock opens is for its source.
	to, err := resolve(ctx, &d.Net, addr)
	if err != nil {
		return nil, err
	}
	if way == SYN {
		return dialSYN(ctx, d.Net, to, AppendToken(nil, t, d.counters.next(t, d.now()), to.Port(), TCP))
	}
	if err := d.knock(ctx, pass.Port, t, to, TCP); err != nil {
		return nil, err
	}
	timer := time.NewTimer(settle)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
	}
	return d.Net.DialContext(ctx, "tcp", to.String())
}

// Knock asks the gateway at to to open its port for one TCP connection.
func (d *Dialer) Knock(ctx context.Context, pass *Pass, to netip.AddrPort) error {
	t := pass.at(d.now())
	if t == nil {
		return ErrNoTicket
	}
	return d.knock(ctx, pass.Port, t, to, TCP)
}

// KnockUDP is Knock for one flow of UDP.
func (d *Dialer) KnockUDP(ctx context.Context, pass *Pass, to netip.AddrPort) error {
	t := pass.at(d.now())
	if t == nil {
		return ErrNoTicket
	}
	return d.knock(ctx, pass.Port, t, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()), UDP)
}

func (d *Dialer) knock(ctx context.Context, port uint16, t *permit.Ticket, to netip.AddrPort, protocol uint8) error {
	c, err := d.Net.DialContext(ctx, "udp", netip.AddrPortFrom(to.Addr(), port).String())
	if err != nil {
		return fmt.Errorf("knock: %w", err)
	}
	at := d.now()
	_, err = c.Write(makeKnock(t, d.counters.next(t, at), port, Wanted{to.Port(), protocol}, at))
	if err = errors.Join(err, c.Close()); err != nil {
		return fmt.Errorf("knock: %w", err)
	}
	return nil
}

// resolve returns the first address of addr.
func resolve(ctx context.Context, d *net.Dialer, addr string) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(addr); err == nil {
		return ap, nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
	if err != nil {
		return netip.AddrPort{}, err
	}
	r := d.Resolver
	if r == nil {
		r = net.DefaultResolver
	}
	ips, err := r.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(ips[0].Unmap(), uint16(n)), nil
}
