package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/wire"
)

// steady is how long a session must have lived for the back-off to start anew:
// a control center that takes Table 4 and then talks nonsense is still met
// with growing pauses.
const steady = 30 * time.Second

// Run hands the stored lists to the handler, then keeps the link until ctx
// ends, and sends a last status (Table 10). It returns after every goroutine of
// g has ended; the error is ctx's.
func (g *Gateway) Run(ctx context.Context) error {
	defer g.state.close()
	defer g.call.close()
	defer g.reports.close()
	g.load(ctx)

	var all errgroup.Group
	all.Go(func() error { g.reports.open(); return nil })
	all.Go(func() error { g.reports.pump(ctx); return nil })
	all.Go(func() error { g.reports.pumpAudit(ctx); return nil })
	all.Go(func() error { g.reportStatus(ctx); return nil })
	all.Go(func() error { g.bufferIdentity(ctx); return nil })
	g.keepSession(ctx)
	err := all.Wait()
	g.farewell(ctx)
	return errors.Join(err, ctx.Err())
}

// keepSession makes one session after the other until ctx ends.
func (g *Gateway) keepSession(ctx context.Context) {
	var pause backoff
	lost := false
	for ctx.Err() == nil {
		began := g.cfg.Now()
		up, err := g.session(ctx, func() {
			if lost {
				g.reports.own.Raise(alert.Alert{Code: alert.ControlBack})
			}
			lost = false
		})
		if ctx.Err() != nil {
			break
		}
		if up && g.cfg.Now().Sub(began) >= steady {
			pause.reset()
		}
		d := pause.next(err)
		g.log.Warn("control link lost", zap.Error(err), zap.Duration("retry_in", d))
		if !lost {
			lost = true
			g.reports.own.Raise(alert.Alert{Code: alert.ControlLost, Detail: err.Error()})
		}
		g.set(func(s *GatewayStatus) {
			s.Connected, s.Push, s.LastError, s.NextTry = false, false, err.Error(), g.cfg.Now().Add(d)
			s.Failures++
		})
		g.reports.rest(ctx, d, nil)
	}
	g.set(func(s *GatewayStatus) { s.Connected, s.Push = false, false })
}

// session is the life of one connection, in order:
//
//	1 prove the device (Tables 4 and 5)
//	2 open the push stream, and only then
//	3 pull both lists, so that no change falls between
//	4 apply what comes, acknowledge, report, prove the device again
//
// The first part that fails ends all. up reports whether step 1 succeeded.
func (g *Gateway) session(ctx context.Context, onUp func()) (up bool, err error) {
	if err := g.identify(ctx); err != nil {
		return false, err
	}
	again := false
	g.set(func(s *GatewayStatus) {
		s.Connected, s.LastError, s.NextTry = true, "", time.Time{}
		again = s.Sessions > 0
		s.Sessions++
	})
	g.log.Info("control link up", zap.String("control_id", g.cfg.ControlID))
	g.reports.delivery.up.Store(true)
	defer g.reports.delivery.up.Store(false)
	onUp()
	if again { // what the control center knows of us is from before the outage
		g.addStatus(ctx, "run")
	}

	parts, ctx := errgroup.WithContext(ctx)
	events := make(chan event, 64)
	acks := make(chan wire.Ack, 256)
	wanted := newWanted()
	parts.Go(func() error { return g.push(ctx, events) })
	parts.Go(func() error { return g.apply(ctx, events, wanted, acks) })
	parts.Go(func() error { return g.pull(ctx, wire.GrantsList, wanted.grants) })
	parts.Go(func() error { return g.pull(ctx, wire.PoliciesList, wanted.policies) })
	parts.Go(func() error { return g.acknowledge(ctx, acks) })
	parts.Go(func() error { return g.reidentify(ctx) })
	for _, stream := range g.reports.streams() {
		parts.Go(func() error { return stream(ctx) })
	}
	return true, parts.Wait()
}

// identify sends Table 4 and judges Table 5.
func (g *Gateway) identify(ctx context.Context) error {
	body, err := wire.Encode(g.identity())
	if err != nil {
		return fmt.Errorf("make table 4: %w", err)
	}
	asked := nonce()
	e := g.versionsExt()
	e[wire.ExtNonce] = ext(asked)
	if g.cfg.Permit != nil {
		if p := g.cfg.Permit(); p != nil {
			e[wire.ExtPermit] = ext(p)
		}
	}
	err = g.reports.delivery.time(ctx, "T4", func() error {
		m, err := g.call.post(ctx, "/identity", envelope.Header{MsgType: "T4", Ext: e}, body, true)
		if err == nil {
			err = g.contact(asked, m)
		}
		return err
	})
	if err != nil {
		return err
	}
	g.set(func(s *GatewayStatus) { s.LastIdentity = g.cfg.Now() })
	return nil
}

func (g *Gateway) identity() wire.DeviceIdentity {
	return wire.DeviceIdentity{
		GatewayID: g.cfg.GatewayID, DeviceID: g.cfg.DeviceID, DeviceName: g.cfg.DeviceName, DeviceType: g.cfg.DeviceType,
		SystemType: g.cfg.SystemType, IP: g.cfg.IP, Port: g.cfg.Port, Timestamp: wire.FormatTime(g.cfg.Now()),
	}
}

func (g *Gateway) versionsExt() map[string]jsontext.Value {
	hash := g.stateHash()
	g.mu.Lock()
	defer g.mu.Unlock()
	e := map[string]jsontext.Value{
		wire.ExtListVersion:   ext(fmt.Sprint(g.status.GrantsVersion)),
		wire.ExtPolicyVersion: ext(fmt.Sprint(g.status.PolicyVersion)),
	}
	if hash != nil {
		e[wire.ExtStateHash] = hash
	}
	return e
}

// reidentify proves the device again at least every 55 s (§7.2, Q25).
func (g *Gateway) reidentify(ctx context.Context) error {
	for sleep(ctx, sooner(g.cfg.IdentityInterval)) {
		if err := g.identify(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// bufferIdentity keeps the identity reports of the time without a link, to be
// sent when it is back (§7.2).
func (g *Gateway) bufferIdentity(ctx context.Context) {
	for sleep(ctx, sooner(g.cfg.IdentityInterval)) {
		g.mu.Lock()
		up := g.status.Connected
		g.mu.Unlock()
		if up {
			continue
		}
		if err := g.reports.add(ctx, ClassIdentity, "T4", g.cfg.Now(), nil, g.identity()); err != nil {
			g.log.Error("identity report not stored", zap.Error(err))
		}
	}
}

// reportStatus puts Table 10 into the outbox at the start and at least every
// 55 s, link or no link.
func (g *Gateway) reportStatus(ctx context.Context) {
	g.addStatus(ctx, "start")
	var dropped uint64
	for sleep(ctx, sooner(g.cfg.IdentityInterval)) {
		g.addStatus(ctx, "run")
		g.reports.delivery.remind()
		if _, n := g.reports.depth(); n > dropped {
			g.reports.own.Raise(alert.Alert{Code: alert.OutboxDropped, Detail: fmt.Sprintf("%d records since the start", n)})
			dropped = n
		}
	}
}

func (g *Gateway) addStatus(ctx context.Context, what string) {
	now, u := g.cfg.Now(), g.cfg.Usage()
	m := wire.GatewayStatus{
		GatewayID: g.cfg.GatewayID, DeviceID: g.cfg.DeviceID, Timestamp: wire.FormatTime(now),
		CPUUsage: usage(u.CPU), MemoryUsage: usage(u.Memory), DiskUsage: usage(u.Disk),
	}
	e := g.versionsExt()
	pending, dropped := g.reports.depth()
	e[wire.ExtState], e[wire.ExtPending], e[wire.ExtDropped] = ext(what), ext(pending), ext(dropped)
	if g.cfg.Freshness != nil {
		e[wire.ExtFreshness] = ext(g.cfg.Freshness())
	}
	if err := g.reports.add(ctx, ClassStatus, "T10", now, e, m); err != nil {
		g.log.Error("status not stored", zap.Error(err))
	}
}

// farewell sends the last status (M63) and what else waits, when the link was
// up; it takes 2 s at most. What cannot be sent stays in the outbox.
func (g *Gateway) farewell(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	g.addStatus(ctx, "stop")
	g.mu.Lock()
	reachable := g.status.LastError == "" && g.status.Sessions > 0
	g.mu.Unlock()
	if !reachable {
		return
	}
	if err := g.reports.flush(ctx); err != nil {
		g.log.Warn("last reports not sent", zap.Error(err))
	}
}

// ackFlights is how many acknowledgements may be on their way at once: on a path
// with a round trip of a second one behind the other would be late. The control
// center keeps the one of the highest version.
const ackFlights = 4

// acknowledge posts acks until ctx ends or the link fails. One that says that
// something was not applied keeps its place between those before and after it.
func (g *Gateway) acknowledge(ctx context.Context, acks <-chan wire.Ack) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	free := make(chan struct{}, ackFlights)
	var flights sync.WaitGroup
	defer flights.Wait()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case a := <-acks:
			if !a.Applied {
				flights.Wait()
			}
			select {
			case free <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			flights.Go(func() {
				defer func() { <-free }()
				if err := g.postAck(ctx, a); err != nil {
					cancel(err)
				}
			})
			if !a.Applied {
				flights.Wait()
			}
		}
	}
}

// postAck posts a. That it is refused is no fault of the link.
func (g *Gateway) postAck(ctx context.Context, a wire.Ack) error {
	body, err := wire.EncodeExtension(a)
	if err != nil {
		return err
	}
	_, err = g.call.post(ctx, "/acks", envelope.Header{MsgType: wire.TypeAck}, body, true)
	var no *RefusedError
	if errors.As(err, &no) {
		g.log.Warn("acknowledgement refused", zap.Uint64("version", a.Version), zap.String("result", no.Result))
		return nil
	}
	return err
}
