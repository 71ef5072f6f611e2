package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/wire"
)

const (
	connectTime  = 5 * time.Second  // one address until it answers
	dialTimeout  = 10 * time.Second // one address: connection, handshake and hello; a gateway to which all return at once needs it
	renewTimeout = 5 * time.Second  // Table 14 and its reply
	hedgeAfter   = 700 * time.Millisecond
	deadAfter    = 2200 * time.Millisecond // a tunnel without a reply is left for a fresh one: within 3 s (§8.2)
	renewMost    = 55 * time.Second        // §8.2: at least every 60 s
	renewLeast   = 45 * time.Second
	retryFirst   = 200 * time.Millisecond
	retryMost    = 30 * time.Second
	closedLeast  = 500 * time.Millisecond // between attempts at a port where nobody listens
	closedMost   = 2500 * time.Millisecond
	closedTries  = 40
	againFirst   = time.Second // a new token that the gateway does not know yet is shown again
	againMost    = 10 * time.Second
	steadyAfter  = 10 * time.Second // a tunnel that lived this long starts the back-off anew
)

// Backoff gives the waits between attempts to make a tunnel: doubling from 0.2 s
// to 30 s, each drawn at random from its upper half, so that many agents do not
// return at once. A port where nobody listens is another matter: to ask costs
// nobody anything, and it is probably a restart. For about a minute the waits
// then stay within 2.5 s, so that everybody is back soon, spread over that time;
// a gateway that is overloaded does not answer in time, and gets the longer ones.
// The zero value is at the start. It is for one goroutine.
type Backoff struct{ n, closed int }

// Next returns the wait after an attempt that failed for err.
func (b *Backoff) Next(err error) time.Duration {
	if b.n > 0 && b.closed < closedTries && nobodyListens(err) {
		b.closed++
		return closedLeast + rand.N(closedMost-closedLeast+1)
	}
	most := min(2*retryFirst<<min(b.n, 20), retryMost)
	b.n++
	return most/2 + rand.N(most/2+1)
}

// nobodyListens reports whether the host answered that the port is closed.
func nobodyListens(err error) bool {
	const windowsRefused = 10061 // WSAECONNREFUSED, which package syscall does not name
	var no syscall.Errno
	return errors.As(err, &no) && (no == syscall.ECONNREFUSED || runtime.GOOS == "windows" && no == windowsRefused)
}

// Reset starts anew, after a tunnel that lived.
func (b *Backoff) Reset() { *b = Backoff{} }

// live is the tunnel in use.
type live struct {
	Tunnel
	gateway, addr string
	since         time.Time
	updated       time.Time // of the hello or the last Table 14; for the goroutine that tends it
	token         string    // guarded by the agent's mu; the last one that the gateway accepted
}

// patience gives the waits until a new token is shown again: 1 s to 10 s, up to
// a fifth more at random. That stays below the wrong tokens that a gateway
// takes in a minute. It is for one goroutine.
type patience struct{ n int }

func (p *patience) next() time.Duration {
	d := min(againFirst<<min(p.n, 10), againMost)
	p.n++
	return d + rand.N(d/5+1)
}

// keepTunnel holds one tunnel while a user is signed in and gateways are known.
func (a *Agent) keepTunnel(ctx context.Context) error {
	var b Backoff
	for {
		s, gws, changed := a.want()
		if !s.in() || len(gws) == 0 {
			b.Reset()
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			}
			continue
		}
		t, err := a.connect(ctx, s, gws)
		for t != nil && err == nil {
			start := a.cfg.Elapsed()
			t, s, err = a.tend(ctx, t, s)
			if a.cfg.Elapsed()-start >= steadyAfter {
				b.Reset()
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			continue // ended on purpose
		}
		a.tunnelFault(err)
		if !a.pause(ctx, b.Next(err), s.userID) {
			return nil
		}
	}
}

// want returns what a tunnel is made of, and the channel of the next change.
func (a *Agent) want() (session, []wire.GatewayRef, chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.session, a.gateways, a.changed
}

// pause waits d, or until the session is another one. It is false when ctx has
// ended.
func (a *Agent) pause(ctx context.Context, d time.Duration, userID string) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		s, _, changed := a.want()
		if s.userID != userID {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-changed:
		}
	}
}

func (a *Agent) tunnelFault(err error) {
	var no *carrier.RefusedError
	if !errors.As(err, &no) || !denial(no.Reason) {
		no = nil
	}
	a.noteRefusal(err)
	a.mu.Lock()
	a.lastFault, a.lastNo = printable(err.Error()), no
	a.mu.Unlock()
	a.log.Warn("tunnel failed", zap.Error(err))
	a.raise(alert.Alert{Code: alert.TunnelFault, Detail: printable(err.Error())})
}

// connect tries each address of each gateway in order and takes the first that
// accepts.
func (a *Agent) connect(ctx context.Context, s session, gws []wire.GatewayRef) (*live, error) {
	var faults []error
	for _, gw := range gws {
		for _, addr := range gw.Addresses {
			t, err := a.dialOne(ctx, gw, addr, s)
			if err == nil {
				a.log.Info("tunnel ready", zap.String("gateway_id", gw.ID), zap.String("remote_addr", addr))
				return &live{Tunnel: t, gateway: gw.ID, addr: addr, since: a.cfg.Now(), updated: a.cfg.Now().Truncate(time.Second), token: s.token}, nil
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			faults = append(faults, fmt.Errorf("gateway %s at %s: %w", gw.ID, addr, err))
		}
	}
	if len(faults) == 0 {
		return nil, errors.New("dial gateway: the resource list names no address")
	}
	return nil, errors.Join(faults...)
}

func (a *Agent) dialOne(ctx context.Context, gw wire.GatewayRef, addr string, s session) (Tunnel, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return a.dialer.Dial(ctx, gw, addr, a.helloOf(s), a.onNotice)
}

func (a *Agent) helloOf(s session) wire.TunnelHello {
	return wire.TunnelHello{AgentID: a.id.AgentID, DeviceID: a.id.DeviceID, UserID: s.userID, AuthToken: s.token, Version: 1}
}

// tend publishes t, which was made for the session held, and renews the
// identity on it (Table 14, Q25) until it ends. It returns no error when the
// agent ended it on purpose: with the tunnel that takes its place, if t was
// found dead, and its session. t is closed on return.
//
// A gateway that is without its control center does not know a new token. The
// tunnel stands on the old one then, as long as that counts, and the new one is
// shown again.
func (a *Agent) tend(ctx context.Context, t *live, held session) (*live, session, error) {
	a.setTunnel(t)
	replaying, stop := context.WithCancel(ctx)
	replayed := make(chan struct{})
	go func() {
		defer close(replayed)
		a.replay(replaying, t, held.userID)
	}()
	defer func() {
		stop()
		<-replayed
		a.setTunnel(nil)
		t.Close()
	}()
	renewal, again := time.NewTimer(renewalWait()), time.NewTimer(math.MaxInt64)
	defer renewal.Stop()
	defer again.Stop()
	up := a.newLadder(t)
	defer up.timer.Stop()
	var wait patience
	unknown := "" // the token that the gateway did not know
	for {
		s, gws, changed := a.want()
		if s.userID != held.userID || !slices.ContainsFunc(gws, func(g wire.GatewayRef) bool { return g.ID == t.gateway }) {
			return nil, held, nil
		}
		if s.token != held.token && s.token != unknown {
			switch spare, err := a.renewHedged(ctx, t, s); {
			case spare != nil:
				return spare, s, nil
			case err == nil:
				held, unknown, wait = s, "", patience{}
				renewal.Reset(renewalWait())
			case notYet(err) && a.cfg.Now().Before(held.expires):
				unknown = s.token
				d := wait.next()
				again.Reset(d)
				a.log.Warn("new token not known at the gateway, the old one is used", zap.String("gateway_id", t.gateway), zap.Duration("retry_in", d))
			default:
				return nil, held, err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil, held, nil
		case <-t.Done():
			return nil, held, fmt.Errorf("tunnel to %s ended: %w", t.gateway, cmpErr(t.Err()))
		case <-changed:
		case <-again.C:
			unknown = ""
		case <-up.timer.C:
			if better := a.climb(ctx, up, t, held); better != nil {
				return better, held, nil
			}
		case <-renewal.C:
			spare, err := a.renewHedged(ctx, t, held)
			if spare != nil || err != nil {
				return spare, held, err
			}
			renewal.Reset(renewalWait())
		}
	}
}

// notYet reports whether err says that the gateway does not know a token, which
// its control center may tell it yet.
func notYet(err error) bool {
	var no *carrier.RefusedError
	return errors.As(err, &no) && (no.Reason == reason.TokenUnknown || no.Reason == reason.TokenGuessLimit)
}

func renewalWait() time.Duration { return renewLeast + rand.N(renewMost-renewLeast) }

func cmpErr(err error) error {
	if err == nil {
		return errors.New("closed")
	}
	return err
}

// renew shows the token of s on t by Table 14. A later one has a later
// updateTime, to the second: a gateway ignores what is not newer (M80).
func (a *Agent) renew(ctx context.Context, t *live, s session) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	now := a.cfg.Now()
	at := now.Truncate(time.Second)
	if !at.After(t.updated) {
		at = t.updated.Add(time.Second)
	}
	t.updated = at
	m := wire.Renewal{AuthToken: s.token, UpdateTime: wire.FormatTime(at)}
	if err := t.Renew(ctx, &m); err != nil {
		if no := (*carrier.RefusedError)(nil); !errors.As(err, &no) {
			a.keep(s.userID, m) // it may have arrived: the gateway knows it by its time
		}
		return fmt.Errorf("renew identity at %s: %w", t.gateway, err)
	}
	a.mu.Lock()
	a.renewed, t.token = now, s.token
	a.mu.Unlock()
	return nil
}

// renewHedged is renew, but without a reply after hedgeAfter it proves the
// identity a second time, by the hello of a fresh tunnel to the same address
// (§8.2: within 3 s, also when the packets of the first vanish). When t has not
// replied after deadAfter, and the fresh tunnel stands, that is returned to take
// its place; flows of a tunnel that is only slow are kept.
func (a *Agent) renewHedged(ctx context.Context, t *live, s session) (spare *live, err error) {
	began := a.cfg.Elapsed()
	defer func() {
		took := a.cfg.Elapsed() - began
		a.mu.Lock()
		a.proof = took
		a.mu.Unlock()
		if took >= ctlclient.LateAfter && ctx.Err() == nil {
			a.raise(alert.Alert{Code: alert.DeliveryLate, Detail: fmt.Sprintf("T14 to %s took %d ms", t.gateway, took.Milliseconds())})
		}
	}()
	return a.proveHedged(ctx, t, s)
}

// proveHedged does the work of renewHedged.
func (a *Agent) proveHedged(ctx context.Context, t *live, s session) (*live, error) {
	_, gws, _ := a.want()
	i := slices.IndexFunc(gws, func(g wire.GatewayRef) bool { return g.ID == t.gateway })
	renewing, giveUp := context.WithCancel(ctx)
	defer giveUp()
	renewed := make(chan error, 1)
	go func() { renewed <- a.renew(renewing, t, s) }()
	dead := time.NewTimer(deadAfter)
	defer dead.Stop()
	timer := time.NewTimer(hedgeAfter)
	defer timer.Stop()
	select {
	case err := <-renewed:
		return nil, err
	case <-timer.C:
	}
	if i < 0 {
		return nil, <-renewed
	}
	dialing, stop := context.WithCancel(ctx)
	defer stop()
	dialed := make(chan Tunnel, 1)
	go func() {
		spare, err := a.dialOne(dialing, gws[i], t.addr, s)
		if err != nil {
			spare = nil
		}
		dialed <- spare
	}()
	var spare Tunnel
	var err error
	wait := dialed // nil once it has given its answer
	for replied := false; !replied; {
		var late <-chan time.Time
		if spare != nil {
			late = dead.C
		}
		select {
		case err = <-renewed:
			replied = true
		case spare = <-wait:
			wait = nil
		case <-late:
			giveUp()
			err, replied = <-renewed, true
		}
	}
	var no *carrier.RefusedError
	keep := err == nil || ctx.Err() != nil || errors.As(err, &no) // t, or nothing
	if keep {
		stop()
	}
	if wait != nil {
		spare = <-wait // within dialTimeout
	}
	switch {
	case spare == nil:
		return nil, err
	case keep:
		spare.Close()
		return nil, err
	}
	now := a.cfg.Now()
	a.log.Warn("tunnel gives no reply, a fresh one takes its place", zap.String("gateway_id", t.gateway), zap.Error(err))
	a.mu.Lock()
	a.renewed = now
	a.mu.Unlock()
	return &live{Tunnel: spare, gateway: t.gateway, addr: t.addr, since: now, updated: now.Truncate(time.Second), token: s.token}, nil
}

func (a *Agent) setTunnel(t *live) {
	a.mu.Lock()
	a.tunnel = t
	if t != nil {
		a.lastFault, a.lastNo, a.lock = "", nil, nil
		a.renewed = a.cfg.Now()
	}
	a.broadcast()
	a.mu.Unlock()
}

// waitTunnel returns the tunnel, after a wait of at most tunnelWait for one
// that is being made.
func (a *Agent) waitTunnel(ctx context.Context) (*live, session, error) {
	ctx, cancel := context.WithTimeout(ctx, tunnelWait)
	defer cancel()
	for {
		a.mu.Lock()
		t, s, changed, fault := a.tunnel, a.session, a.changed, a.lastFault
		no := a.lastNo
		none := a.routes != nil && len(a.gateways) == 0
		token := ""
		if t != nil {
			token = t.token // the one that this gateway knows
		}
		a.mu.Unlock()
		if !s.in() {
			return nil, s, &Refusal{Reason: reason.LoginRequired, Detail: "run yumen agent login"}
		}
		if t != nil {
			s.token = token
			return t, s, nil
		}
		if no != nil {
			return nil, s, no // the gateway has said why: no use to wait, and no other word for it
		}
		if none {
			return nil, s, &Refusal{Reason: reason.TunnelClosed, Detail: "the resource list names no gateway"}
		}
		select {
		case <-ctx.Done():
			return nil, s, &Refusal{Reason: reason.TunnelClosed, Detail: fault}
		case <-changed:
		}
	}
}

// onNotice takes Table 15. It runs on the tunnel's reader and does not block.
func (a *Agent) onNotice(m *wire.Notice) {
	n := fromGateway(m, a.cfg.Now())
	a.notices.add(n)
	a.log.Warn("gateway notice", zap.String("gateway_id", printable(m.GatewayID)), zap.String("type", n.Type), zap.Int("level", n.Level), zap.String("content", n.Content))
	if alert.Code(m.ExceptionAlertType) == alert.LockInForce {
		a.noteLock(lockMessage(m.ExceptionAlertContent)) // gateways tell only those whom it shuts out
	}
	switch alert.Code(m.ExceptionAlertType) {
	case alert.SessionCut, alert.AccessRefused, alert.LockInForce:
		a.hint(200 * time.Millisecond) // what we may reach has probably changed
	}
}
