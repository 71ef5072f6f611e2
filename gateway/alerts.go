package gateway

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/clock"
	"github.com/yumen-zt/yumen/internal/reason"
)

// alerts is walk (d): source → here → damping → log, control center, agents
// concerned. The parts get it before the links to the outside exist; those are
// put in when they are made.
type alerts struct {
	damper *alert.Damper
	log    *zap.Logger
	up     atomic.Pointer[alert.Sink] // the control center; nil: none
	agents atomic.Pointer[alert.Sink] // the tunnels of the agents concerned (Table 15); nil: none
	raised atomic.Uint64
}

// dampInterval is how long further alerts of one code and subject are held
// back, to be counted in the next one.
const dampInterval = 30 * time.Second

func newAlerts(log *zap.Logger, now func() time.Time) *alerts {
	a := &alerts{log: log}
	a.damper = alert.NewDamper(alert.Func(a.deliver), dampInterval, now)
	return a
}

// Raise takes an alert from any part.
func (a *alerts) Raise(al alert.Alert) { a.damper.Raise(al) }

func (a *alerts) deliver(al alert.Alert) {
	a.raised.Add(1)
	level := zap.InfoLevel
	switch al.Level {
	case alert.Warning:
		level = zap.WarnLevel
	case alert.Severe:
		level = zap.ErrorLevel
	}
	entry, _ := alert.Lookup(al.Code)
	if ce := a.log.Check(level, "alert"); ce != nil {
		ce.Write(zap.String("code", string(al.Code)), zap.String("what", entry.EN), zap.Stringer("reason", al.Reason),
			zap.String("user_id", al.UserID), zap.String("device_id", al.DeviceID), zap.String("app_id", al.AppID),
			zap.String("remote_addr", al.Remote), zap.String("detail", al.Detail), zap.Int("repeats", al.Repeats))
	}
	if s := a.up.Load(); s != nil {
		(*s).Raise(al)
	}
	if s := a.agents.Load(); s != nil && entry.ToAgent {
		(*s).Raise(al)
	}
}

// run passes on what damping held back, until ctx is done.
func (a *alerts) run(ctx context.Context) error {
	tick := time.NewTicker(dampInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			a.damper.Flush()
		}
	}
}

// contain turns a panic of a background part into an alert; the part ends.
func (a *alerts) contain(part string, recovered any) {
	a.Raise(alert.Alert{Code: alert.InternalFault, Reason: reason.InternalError, Detail: part})
	a.log.Error("panic contained", zap.String("part", part), zap.Any("error", recovered), zap.Stack("stack"))
}

// clockCheck is how often the wall clock is compared with a steady one.
const clockCheck = 2 * time.Second

// watchClock tells when the wall clock is set, until ctx is done (R17). What
// that means for grants is access's.
func (a *alerts) watchClock(ctx context.Context, w *clock.Watcher) error {
	tick := time.NewTicker(clockCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if by, stepped := w.Step(); stepped {
			a.Raise(alert.Alert{Code: alert.ClockJump, Detail: fmt.Sprintf("by %s", by.Round(time.Millisecond))})
		}
	}
}
