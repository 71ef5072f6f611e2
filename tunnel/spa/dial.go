package spa

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// settle is how long a knock gets to be judged before the connection's first
// packet follows it.
const settle = 15 * time.Millisecond

// attempts are the times that a connection gets before it is begun anew with a
// fresh knock: either may have been lost.
var attempts = []time.Duration{300 * time.Millisecond, 700 * time.Millisecond, 1500 * time.Millisecond, 3 * time.Second}

// ErrNoTicket means that no ticket counts now.
var ErrNoTicket = errors.New("no ticket counts now (the control center gives them with the resource list)")

// Dialer connects through guards. The zero value is ready; its methods may be
// called from any goroutine.
type Dialer struct {
	Net net.Dialer
	Now func() time.Time // default time.Now

	counters counters
}

// Dial knocks with pass and connects to addr (host:port) over TCP.
func (d *Dialer) Dial(ctx context.Context, pass *Pass, addr string) (net.Conn, error) {
	var errs []error
	for _, wait := range attempts {
		c, err := d.attempt(ctx, pass, addr, wait)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil || errors.Is(err, ErrNoTicket) {
			break
		}
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() {
			break // somebody answered: it is not the guard
		}
	}
	return nil, fmt.Errorf("dial %s by knock: %w", addr, errors.Join(errs...))
}

func (d *Dialer) attempt(ctx context.Context, pass *Pass, addr string, wait time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, settle+wait)
	defer cancel()
	// One family and address for both: what the knock opens is for its source.
	to, err := resolve(ctx, &d.Net, addr)
	if err != nil {
		return nil, err
	}
	if err := d.Knock(ctx, pass, to); err != nil {
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
	now := time.Now
	if d.Now != nil {
		now = d.Now
	}
	at := now()
	t := pass.at(at)
	if t == nil {
		return ErrNoTicket
	}
	c, err := d.Net.DialContext(ctx, "udp", netip.AddrPortFrom(to.Addr(), pass.Port).String())
	if err != nil {
		return fmt.Errorf("knock: %w", err)
	}
	_, err = c.Write(makeKnock(t, d.counters.next(t, at), pass.Port, Wanted{to.Port(), TCP}, at))
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
