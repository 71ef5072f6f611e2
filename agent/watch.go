package agent

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/agent/posture"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/clock"
)

const (
	watchPeriod  = 5 * time.Second
	lookPeriod   = 10 * time.Second // of the device's state
	checkPeriod  = 55 * time.Second // of the state file
	alertDamping = time.Minute      // one alert of a kind and subject (clause 9.4: the first goes at once)
)

// raise shows al to the person at this machine and sends it to the control
// center (Table 22, §9.4).
func (a *Agent) raise(al alert.Alert) {
	if al.Time.IsZero() {
		al.Time = a.cfg.Now()
	}
	al.DeviceID = a.id.DeviceID
	a.alerts.Raise(al)
}

// sendAlert is where the damper lets alerts out.
func (a *Agent) sendAlert(al alert.Alert) {
	e, _ := alert.Lookup(al.Code)
	n := Notice{Time: al.Time, Kind: "agent", Type: string(al.Code), Level: int(al.Level), Content: al.Detail, Words: Words{EN: e.EN + ". " + e.AdviceEN, ZH: e.ZH + "。" + e.AdviceZH}}
	if al.Reason != 0 {
		n.Reason = al.Reason.Code()
	}
	a.notices.add(n)
	a.link.Raise(al)
}

// watch looks for a clock that jumped and for a state file that was altered
// (M101), and lets held-back alerts out.
func (a *Agent) watch(ctx context.Context) error {
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	wall, steady := clock.NewWatcher(a.cfg.Now, a.cfg.Elapsed), a.cfg.Elapsed()
	checked, flushed, looked := steady, steady, steady
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if by, stepped := wall.Step(); stepped {
			a.log.Warn("clock jumped", zap.Duration("by", by))
			a.raise(alert.Alert{Code: alert.ClockJump, Detail: fmt.Sprintf("by %s", by.Round(time.Millisecond))})
		}
		s := a.cfg.Elapsed()
		if s-looked >= lookPeriod {
			looked = s
			a.lookAround()
		}
		if s-flushed >= alertDamping {
			flushed = s
			a.alerts.Flush()
		}
		if s-checked >= checkPeriod {
			checked = s
			if err := a.state.check(); err != nil {
				return a.altered(ctx, err)
			}
		}
	}
}

// lookAround looks at the device, and reports at once what has changed: what
// policies ask of it may hold no longer.
func (a *Agent) lookAround() {
	now := a.cfg.Probe()
	a.mu.Lock()
	changed := a.posture != now
	a.posture = now
	a.mu.Unlock()
	if changed {
		a.log.Info("the state of the device has changed", zap.String("disk_encrypted", string(now.DiskEncrypted)), zap.String("firewall", string(now.Firewall)), zap.String("version", now.Version))
		a.link.ReportNow()
	}
}

// postureNow is what reports say of the device.
func (a *Agent) postureNow() *posture.Report {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.posture
	return &p
}
