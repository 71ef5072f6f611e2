package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/tunnel/spa"
	"github.com/yumen-zt/yumen/wire"
)

// headStart is what a better carrier gets before the next one sets off, too.
const headStart = 300 * time.Millisecond

// How long a tunnel stays on a carrier that is not the best before that is tried
// again: at first, and after many attempts in vain.
const (
	climbFirst = 10 * time.Second
	climbMost  = 5 * time.Minute
)

// carriers are those of tunnels, the best first. With auto they race; otherwise
// there is one, and a gateway that does not take it is not asked by another.
func (c *Config) carriers() []string {
	switch c.Carrier {
	case carrier.NameAuto:
		return slices.DeleteFunc([]string{carrier.NameQUIC, carrier.NameTLCP, carrier.NameTLS}, func(name string) bool { return !c.permits(name) })
	case "":
		if c.Crypto.Profile.TLCP() {
			return []string{carrier.NameTLCP}
		}
		return []string{carrier.NameTLS}
	}
	return []string{c.Carrier}
}

// permits reports whether the profile has a carrier.
func (c *Config) permits(name string) bool {
	switch name {
	case carrier.NameTLCP:
		return c.Crypto.Profile.TLCP()
	case carrier.NameTLS, carrier.NameQUIC:
		return c.Crypto.Profile.TLS()
	}
	return name == carrier.NameAuto
}

// carrierFaults checks carrier and seal_tunnels.
func (c *Config) carrierFaults(fault func(path, format string, args ...any)) {
	switch c.Carrier {
	case "", carrier.NameTLCP, carrier.NameTLS, carrier.NameQUIC, carrier.NameAuto:
		if c.Carrier != "" && !c.permits(c.Carrier) {
			fault("carrier", "%s is not of the profile %s (remove it, or change crypto.profile)", c.Carrier, c.Crypto.Profile)
		}
	default:
		fault("carrier", "%q is none of tlcp, tls, quic, auto", c.Carrier)
	}
	if c.SealTunnels && !c.Crypto.Profile.TLCP() {
		fault("seal_tunnels", "the profile %s has no TLCP (remove it, or change crypto.profile)", c.Crypto.Profile)
	}
}

// carrierReason says to people why tunnels have the carriers that they have.
func (c *Config) carrierReason() string {
	if c.Carrier != "" {
		return "carrier: " + c.Carrier
	}
	return "crypto.profile: " + c.Crypto.Profile.String()
}

// openChannels makes what the carriers prove themselves with.
func (d *gatewayDialer) openChannels(keys *keystore.Store) (err error) {
	open := func(tlcp bool, alpn string) (*channel.Client, error) {
		return channel.New(channel.Config{
			Dial: d.permits.connect,
			Keys: keys, TLCP: tlcp, AnyName: true, ALPN: []string{alpn}, Timeout: dialTimeout, Now: d.now,
			Peer: func(certid.Identity) error { return errors.New("verify gateway: none was named") }, // each dial names its own
		})
	}
	if d.seal || slices.Contains(d.carriers, carrier.NameTLCP) {
		if d.tlcp, err = open(true, carrier.ALPN); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(d.carriers, func(c string) bool { return c != carrier.NameTLCP }) {
		d.tls, err = open(false, d.alpn())
	}
	return err
}

// alpn is what carriers by TLS offer.
func (d *gatewayDialer) alpn() string {
	if d.seal {
		return carrier.ALPNSealed
	}
	return carrier.ALPN
}

// dialBy connects to gw by one carrier.
func (d *gatewayDialer) dialBy(ctx context.Context, name string, gw wire.GatewayRef, addr string, s *shown) (c carrier.Conn, err error) {
	peer := func(id certid.Identity) error {
		if id.Gateway == "" || id.Gateway != gw.ID {
			return fmt.Errorf("verify gateway: the certificate is %s's, not %s's", cmp.Or(id.Name(), "nobody"), gw.ID)
		}
		return nil
	}
	ctx = withPermit(ctx, s)
	switch name {
	case carrier.NameTLCP:
		return (&carrier.TCP{Channel: d.tlcp, Peer: peer}).Dial(ctx, addr)
	case carrier.NameQUIC:
		c, err = (&carrier.QUIC{Channel: d.tls, Peer: peer, ALPN: d.alpn(), Packets: d.permits.packets(s)}).Dial(ctx, addr)
	default:
		c, err = (&carrier.TCP{Channel: d.tls, Peer: peer, ALPN: d.alpn()}).Dial(ctx, addr)
	}
	if err != nil || !d.seal {
		return c, err
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return carrier.Seal(ctx, c, d.tlcp, host, peer)
}

// race connects by the first of the carriers that comes through: each has a head
// start on the next one, which also sets off when the one before has failed.
// lost says why it is not a better one.
func (d *gatewayDialer) race(ctx context.Context, order []string, dial func(ctx context.Context, name string) (carrier.Conn, error)) (c carrier.Conn, rank int, lost string, err error) {
	type result struct {
		rank int
		conn carrier.Conn
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result, len(order))
	started, running := 0, 0
	timer := time.NewTimer(headStart)
	defer timer.Stop()
	start := func() {
		if started == len(order) {
			return
		}
		rank := started
		started, running = started+1, running+1
		timer.Reset(headStart)
		go func() {
			c, err := dial(ctx, order[rank])
			results <- result{rank, c, err}
		}()
	}
	faults := make([]error, len(order))
	for start(); running > 0; {
		select {
		case <-timer.C:
			start()
		case r := <-results:
			running--
			if faults[r.rank] = r.err; r.err != nil {
				start()
				continue
			}
			cancel()
			for ; running > 0; running-- { // they end soon
				if late := <-results; late.err == nil {
					_ = late.conn.Close()
				}
			}
			return r.conn, r.rank, why(order[:r.rank], faults), nil
		}
	}
	return nil, 0, "", errors.Join(faults...)
}

// why says of each carrier that lost what was wrong with it.
func why(order []string, faults []error) string {
	var all []string
	for i, name := range order {
		text := fmt.Sprintf("no answer within %v", headStart)
		if faults[i] != nil {
			text = printable(faults[i].Error())
		}
		all = append(all, name+": "+text)
	}
	return strings.Join(all, "; ")
}

// carried is a tunnel that knows its carrier.
type carried struct {
	ends
	state channel.State
	rank  int    // in the dialer's carriers; 0 is the best
	lost  string // why it is not a better one
	way   spa.Way
}

// ends is a [carrier.Client], or a [carrier.Bundle] of several.
type ends interface {
	Open(ctx context.Context, network string, m *wire.AccessRequest) (net.Conn, error)
	Renew(ctx context.Context, m *wire.Renewal) error
	Done() <-chan struct{}
	Err() error
	Close() error
}

// Carrier implements [Tunnel].
func (c carried) Carrier() channel.State { return c.state }

// climber is a [Dialer] whose tunnels may be on a carrier that is not the best.
type climber interface {
	// Climb is Dial by carriers that are better than t's alone.
	Climb(ctx context.Context, gw wire.GatewayRef, addr string, hello wire.TunnelHello, notices func(*wire.Notice), t Tunnel) (Tunnel, error)
	// Below reports whether there are any, and how long to wait before they are
	// tried at first.
	Below(t Tunnel) (time.Duration, bool)
}

// Below implements [climber].
func (d *gatewayDialer) Below(t Tunnel) (time.Duration, bool) {
	c, ok := t.(carried)
	return d.climb, ok && c.rank > 0
}

// Climb implements [climber].
func (d *gatewayDialer) Climb(ctx context.Context, gw wire.GatewayRef, addr string, hello wire.TunnelHello, notices func(*wire.Notice), t Tunnel) (Tunnel, error) {
	c, ok := t.(carried)
	if !ok || c.rank == 0 {
		return nil, errors.New("climb: there is no better carrier")
	}
	return d.dial(ctx, d.carriers[:c.rank], gw, addr, hello, notices)
}

// ladder is when a tunnel on a lesser carrier tries better ones. It is for one
// goroutine.
type ladder struct {
	timer *time.Timer
	wait  time.Duration
}

func (a *Agent) newLadder(t *live) *ladder {
	l := &ladder{timer: time.NewTimer(time.Hour)}
	c, ok := a.dialer.(climber)
	if wait, below := time.Duration(0), false; ok {
		if wait, below = c.Below(t.Tunnel); below {
			l.wait = wait
			l.timer.Reset(wait)
			return l
		}
	}
	l.timer.Stop()
	return l
}

// climb tries better carriers than t's, when nothing flows that would break: it
// returns the tunnel that takes t's place, or nil.
func (a *Agent) climb(ctx context.Context, l *ladder, t *live, s session) *live {
	a.mu.Lock()
	busy := len(a.flows) > 0
	a.mu.Unlock()
	if busy {
		l.timer.Reset(l.wait)
		return nil
	}
	_, gws, _ := a.want()
	i := slices.IndexFunc(gws, func(g wire.GatewayRef) bool { return g.ID == t.gateway })
	if i < 0 {
		return nil
	}
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	better, err := a.dialer.(climber).Climb(dialing, gws[i], t.addr, a.helloOf(s), a.onNotice, t.Tunnel)
	if err != nil {
		l.wait = min(2*l.wait, climbMost)
		l.timer.Reset(l.wait)
		return nil
	}
	now := a.cfg.Now()
	a.log.Info("tunnel on a better carrier")
	a.mu.Lock()
	a.renewed = now
	a.mu.Unlock()
	return &live{Tunnel: better, gateway: t.gateway, addr: t.addr, since: now, updated: now.Truncate(time.Second), token: s.token}
}
