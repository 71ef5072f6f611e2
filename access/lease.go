package access

import (
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// Lease is the live right of one flow to continue. Release must be called
// exactly once for each lease, cut or not.
type Lease struct {
	a       *Access
	s       *Session
	app     App
	kind    Kind
	req     policy.Request
	carrier Carrier
	use     *usage
	seq     uint64 // order of Acquire
	since   time.Time

	unrecorded atomic.Bool // the record of the decision is not written

	state    atomic.Uint32 // phase, and behind the cut the reason << 8
	released atomic.Bool
	pos      int // in s.leases, -1 outside; guarded by s.mu
}

// The phases of a lease. It leaves pending and live once.
const (
	pending  uint32 = iota // registered, not decided
	live                   //
	cut                    // the monitor took the right away
	finished               // refused, or released by its flow
)

// Session returns whose lease it is.
func (l *Lease) Session() *Session { return l.s }

// Reason says why the lease was cut; OK while it was not.
func (l *Lease) Reason() reason.Reason {
	if v := l.state.Load(); v&0xff == cut {
		return reason.Reason(v >> 8)
	}
	return reason.OK
}

// leave moves l out of the phase from. Only the caller that it returns true to
// may act on the end of l.
func (l *Lease) leave(from, to uint32) bool {
	if !l.state.CompareAndSwap(from, to) {
		return false
	}
	l.use.active.Add(-1)
	l.a.metrics.leases[l.kind].Add(-1)
	return true
}

// register puts l into its session. It returns why the session has ended, if
// it has.
func (l *Lease) register() reason.Reason {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		if s.why == reason.OK {
			return reason.SessionUnknown
		}
		return s.why
	}
	l.use = l.a.usages.of(s, l.app)
	l.use.active.Add(1)
	l.a.metrics.leases[l.kind].Add(1)
	l.pos = len(s.leases)
	s.leases = append(s.leases, l)
	return reason.OK
}

func (l *Lease) unregister() {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.leases) - 1
	if l.pos < 0 || l.pos > last || s.leases[l.pos] != l {
		return
	}
	s.leases[l.pos] = s.leases[last]
	s.leases[l.pos].pos = l.pos
	s.leases[last] = nil
	s.leases = s.leases[:last]
	l.pos = -1
}

// cut takes the right of l away for r, and reports whether it was this call
// that did. The carrier is called under no lock. start is when the cause came.
func (a *Access) cut(l *Lease, r reason.Reason, start time.Time) bool {
	end := cut | uint32(r)<<8
	if l.leave(pending, end) {
		return false // Acquire will see it; no flow has begun
	}
	if !l.leave(live, end) {
		return false
	}
	a.callCut(l, r)
	a.metrics.cut(r, a.cfg.Now().Sub(start))
	return true
}

// callCut calls the carrier. A carrier that panics must not end the monitor.
func (a *Access) callCut(l *Lease, r reason.Reason) {
	defer func() {
		if p := recover(); p != nil {
			a.cfg.Logger.Error("carrier panicked in cut", zap.Stringer("kind", l.kind), zap.Any("panic", p), zap.Stack("stack"))
			a.raise(alert.Alert{Code: alert.InternalFault, Reason: reason.InternalError, SessionID: l.s.id, Detail: "a carrier panicked in Cut"})
		}
	}()
	l.carrier.Cut(r)
}

// Usage is what a flow used.
type Usage struct {
	End               time.Time // by the clock of Config.Now; zero: now
	BytesIn, BytesOut int64
	Status            int           // of the HTTP response; 0: none
	Reason            reason.Reason // why the flow ended by itself; OK: as it should
}

// Release ends the lease and writes its audit record. A second call has no
// effect. It reports whether access has let go of the carrier; else a Cut or a
// record that began before may still use it.
func (l *Lease) Release(u Usage) (free bool) {
	if !l.released.CompareAndSwap(false, true) {
		return false
	}
	free = l.leave(live, finished)
	l.unregister()
	now := u.End
	if now.IsZero() {
		now = l.a.cfg.Now()
	}
	l.s.touch(now)
	why := u.Reason
	if r := l.Reason(); r != reason.OK {
		why = r
	} else if why == reason.OK {
		select {
		case <-l.s.done: // the cut of another lease took this one's carrier along before its own turn
			why = l.s.Reason()
		default:
		}
	}
	rec := l.a.record(audit.End, l, why, now)
	rec.BytesIn, rec.BytesOut, rec.Duration = u.BytesIn, u.BytesOut, max(0, now.Sub(l.since))
	rec.Allowed = why == reason.OK
	if u.Status != 0 {
		rec.Detail = statusText(u.Status)
	}
	if l.unrecorded.CompareAndSwap(true, false) {
		l.a.write(rec, l, l.s) // one record for both
		return free
	}
	l.a.write(rec, l, nil)
	return false
}
