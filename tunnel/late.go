package tunnel

import (
	"sync"
	"time"

	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// lateReports knows which Table 14s of the time without a tunnel have come: an
// agent sends them in order, and again when it got no reply (M76). The zero value
// is ready.
type lateReports struct {
	mu     sync.Mutex
	newest map[string]time.Time // guarded by mu; updateTime, by agent and user
}

// maxLate bounds the agents that are remembered. Beyond it all are forgotten: a
// report that comes again may then have a second record.
const maxLate = 1 << 16

// first reports whether a report of this time comes for the first time.
func (l *lateReports) first(who string, at time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !at.After(l.newest[who]) {
		return false
	}
	if l.newest == nil || len(l.newest) >= maxLate {
		l.newest = map[string]time.Time{}
	}
	l.newest[who] = at
	return true
}

// lateAudit records a Table 14 that was made at a time without a tunnel.
func (t *tunnel) lateAudit(at time.Time) {
	t.srv.cfg.Audit.Write(&audit.Record{
		Time: t.srv.cfg.Now(), Kind: audit.Interface, GatewayID: t.srv.cfg.GatewayID, UserID: t.userID, DeviceID: t.id.Device, AgentID: t.id.Agent,
		SessionID: t.key, Object: "T14", Protocol: t.conn.Protocol.String(), Suite: t.conn.Suite, Remote: t.remote().String(),
		Allowed: true, Result: reason.OK.String(), Code: reason.OK, Detail: "late: made at " + at.UTC().Format(time.RFC3339),
	})
}
