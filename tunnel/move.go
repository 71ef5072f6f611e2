package tunnel

import (
	"net/netip"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/reason"
)

// remote returns where the agent is now.
func (t *tunnel) remote() netip.AddrPort {
	if t.conn.Where != nil {
		return t.conn.Where()
	}
	return t.conn.Remote
}

// keep notes a flow that has its lease, on a carrier that may move: access has
// judged it at the address of now.
func (t *tunnel) keep(x *flow) {
	if t.conn.Where == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		t.live = map[*flow]struct{}{}
	}
	t.live[x] = struct{}{}
}

func (t *tunnel) forget(x *flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.live, x)
}

// moved judges the flows of an agent that has another address than it came with,
// each second: their leases know the address at which they were given alone. A
// NAT that gives another port moves nobody.
func (t *tunnel) moved() {
	if t.conn.Where == nil {
		return
	}
	now := t.conn.Where().Addr()
	if now == t.conn.Remote.Addr() && !t.away {
		return
	}
	if now != t.at {
		t.srv.log.Info("tunnel moved", zap.String("session_id", t.key), zap.String("agent_id", t.id.Agent), zap.Stringer("remote_addr", now))
		t.interfaceAudit("tunnel move", reason.OK, t.userID)
		t.at, t.away = now, true
	}
	t.mu.Lock()
	flows := make([]*flow, 0, len(t.live))
	for x := range t.live {
		flows = append(flows, x)
	}
	t.mu.Unlock()
	for _, x := range flows {
		d := t.srv.cfg.Access.Explain(t.session.Facts(), x.request.AppID, policy.Request{Remote: now.Unmap(), Protocol: t.conn.Protocol})
		switch r := d.Decision.Reason; r {
		case reason.OK, reason.PolicyMaxConn, reason.PolicyRate: // which count, and have counted it
		default:
			x.Cut(r)
		}
	}
}
