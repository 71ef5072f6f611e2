package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/go-json-experiment/json"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// Run keeps the link until ctx ends: once a user has signed in, identity
// report, status and resources at least every 60 s, and alerts at once. It
// returns after every goroutine of a has ended; the error is ctx's.
func (a *Agent) Run(ctx context.Context) error {
	defer a.call.close()
	defer a.reports.close()
	var all errgroup.Group
	all.Go(func() error { a.reports.open(); return nil })
	all.Go(func() error { a.reports.pump(ctx); return nil })
	all.Go(func() error { a.reportStatus(ctx); return nil })
	a.keepSession(ctx)
	err := all.Wait()
	a.farewell(ctx)
	return errors.Join(err, ctx.Err())
}

// keepSession makes one session after the other until ctx ends. While nobody
// is signed in there is none.
func (a *Agent) keepSession(ctx context.Context) {
	var pause backoff
	for ctx.Err() == nil {
		a.mu.Lock()
		user := a.user
		a.mu.Unlock()
		if user == "" {
			select {
			case <-ctx.Done():
			case <-a.changed:
			}
			continue
		}
		began := a.cfg.Now()
		up, err := a.session(ctx, user)
		var no *RefusedError
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errUserChanged):
			pause.reset()
			continue
		case errors.As(err, &no) && no.Reason != reason.MessageSkew || errors.Is(err, errNotIdentified):
			a.signedOut(user, err) // a wrong clock says nothing about the user
			continue
		case up && a.cfg.Now().Sub(began) >= steady:
			pause.reset()
		}
		d := pause.next(err)
		a.log.Warn("control link lost", zap.Error(err), zap.Duration("retry_in", d))
		a.mu.Lock()
		a.status.Connected, a.status.LastError, a.status.NextTry = false, err.Error(), a.cfg.Now().Add(d)
		a.status.Failures++
		a.mu.Unlock()
		a.reports.rest(ctx, d, a.changed)
	}
}

// signedOut ends the sign-in because the control center says so.
func (a *Agent) signedOut(user string, err error) {
	a.mu.Lock()
	if a.user != user {
		a.mu.Unlock()
		return // somebody signed in meanwhile
	}
	a.user, a.digest = "", ""
	a.status.Connected, a.status.UserID, a.status.TokenExpires = false, "", time.Time{}
	a.status.LastError = err.Error()
	a.mu.Unlock()
	a.log.Warn("signed out by the control center", zap.String("user_id", user), zap.Error(err))
	a.cfg.OnSignedOut(err)
}

var errUserChanged = errors.New("somebody signed in or out")

// session is the life of one connection of a signed-in user: identity report,
// status and resources, then all again at least every 55 s, and the outbox's
// streams.
func (a *Agent) session(ctx context.Context, user string) (up bool, err error) {
	err = a.reportWhole(ctx, user)
	whole := !errors.Is(err, errNotWhole)
	if !whole {
		err = a.report(ctx, user)
	}
	if err != nil {
		return false, err
	}
	a.mu.Lock()
	a.status.Connected, a.status.LastError, a.status.NextTry = true, "", time.Time{}
	a.whole = whole
	a.mu.Unlock()
	a.reports.delivery.up.Store(true)
	defer a.reports.delivery.up.Store(false)
	if !whole {
		a.addStatus(ctx)
	}
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error {
		if !whole {
			if err := a.refresh(ctx); err != nil {
				return err
			}
		}
		for {
			t := time.NewTimer(sooner(a.cfg.Interval))
			select {
			case <-ctx.Done():
				t.Stop()
				return ctx.Err()
			case <-a.changed:
				t.Stop()
				return errUserChanged
			case <-a.due:
				t.Stop()
			case <-t.C:
			}
			if whole {
				if err := a.reportWhole(ctx, user); err != nil {
					return err
				}
				continue
			}
			if err := a.report(ctx, user); err != nil {
				return err
			}
			if err := a.refresh(ctx); err != nil {
				return err
			}
		}
	})
	for _, stream := range a.reports.streams() {
		parts.Go(func() error { return stream(ctx) })
	}
	return true, parts.Wait()
}

// report sends the identity report: Table 16 without factors (Q25).
func (a *Agent) report(ctx context.Context, user string) error {
	a.mu.Lock()
	method := a.method
	a.mu.Unlock()
	var t Token
	err := a.reports.delivery.time(ctx, "T16", func() (err error) {
		t, err = a.prove(ctx, user, method, nil)
		return err
	})
	if err != nil {
		return err
	}
	return a.reported(t, user)
}

// reported takes the token of an identity report of user.
func (a *Agent) reported(t Token, user string) error {
	if t.UserID != user {
		return fmt.Errorf("%w: table 18 is for another user", ErrDown)
	}
	a.mu.Lock()
	same := a.user == user
	a.mu.Unlock()
	if !same {
		return errUserChanged
	}
	a.took(t)
	return nil
}

// refresh fetches Table 19 and passes it on when it says something new.
func (a *Agent) refresh(ctx context.Context) error {
	r, err := a.FetchResources(ctx)
	if err != nil {
		return err
	}
	return a.pass(r, "")
}

// pass passes Table 19 on when it says something new.
func (a *Agent) pass(r *Resources, tag string) error {
	said := *r
	said.List.Timestamp = ""
	raw, err := json.Marshal(said, json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("compare table 19: %w", err)
	}
	sum := fmt.Sprintf("%x", sm3.Sum(raw))
	a.mu.Lock()
	fresh := a.digest != sum && a.user == r.List.UserID
	if fresh {
		a.digest = sum
	}
	if a.user == r.List.UserID {
		a.tag = tag
	}
	a.status.LastResources = a.cfg.Now()
	a.mu.Unlock()
	if fresh {
		a.cfg.OnResources(r)
	}
	return nil
}

// reportStatus puts Table 21, and while the link is down the identity report
// too, into the outbox at least every 55 s (§9.2).
func (a *Agent) reportStatus(ctx context.Context) {
	var dropped uint64
	for sleep(ctx, sooner(a.cfg.Interval)) {
		a.reports.delivery.remind()
		a.mu.Lock()
		user, method, up, whole := a.user, a.method, a.status.Connected, a.whole
		a.mu.Unlock()
		if !up || !whole {
			a.addStatus(ctx)
		}
		if user != "" && !up {
			if err := a.reports.add(ctx, ClassIdentity, "T16", a.cfg.Now(), nil, a.authentication(user, method, nil)); err != nil {
				a.log.Error("identity report not stored", zap.Error(err))
			}
		}
		if _, n := a.reports.depth(); n > dropped {
			a.Raise(alert.Alert{Code: alert.OutboxDropped, Detail: fmt.Sprintf("%d records since the start", n)})
			dropped = n
		}
	}
}

// addStatus puts Table 21 of a signed-in user into the outbox; without one there
// is nobody to report for.
func (a *Agent) addStatus(ctx context.Context) {
	a.mu.Lock()
	user := a.user
	a.mu.Unlock()
	if user == "" {
		return
	}
	now := a.cfg.Now()
	a.keepStatus(ctx, now, a.statusOf(user, now))
}

// statusOf makes Table 21.
func (a *Agent) statusOf(user string, now time.Time) *wire.AgentStatus {
	u := a.cfg.Usage()
	ip, port := a.cfg.Address()
	return &wire.AgentStatus{
		AgentID: a.cfg.AgentID, UserID: user, DeviceID: a.cfg.DeviceID, Timestamp: wire.FormatTime(now), IP: ip, Port: port,
		CPUUsage: usage(u.CPU), MemoryUsage: usage(u.Memory), DiskUsage: usage(u.Disk),
	}
}

func (a *Agent) keepStatus(ctx context.Context, at time.Time, m *wire.AgentStatus) {
	if err := a.reports.add(ctx, ClassStatus, "T21", at, nil, m); err != nil {
		a.log.Error("status not stored", zap.Error(err))
	}
}

// farewell sends what waits when the link was up, for 2 s at most.
func (a *Agent) farewell(ctx context.Context) {
	a.mu.Lock()
	up := a.status.Connected
	a.status.Connected = false
	a.mu.Unlock()
	if !up {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	a.addStatus(ctx)
	if err := a.reports.flush(ctx); err != nil {
		a.log.Warn("last reports not sent", zap.Error(err))
	}
}
