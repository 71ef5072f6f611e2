package control

import (
	"time"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/wire"
)

// Status is what a control center says of itself and of its gateways.
type Status struct {
	ID              string          `json:"id"`
	Time            time.Time       `json:"time"`
	Revision        uint64          `json:"revision"`
	GrantsVersion   uint64          `json:"grants_version"`
	PoliciesVersion uint64          `json:"policies_version"`
	Users           int             `json:"users"`
	Devices         int             `json:"devices"`
	Apps            int             `json:"apps"`
	Grants          int             `json:"grants"`
	Rows            int             `json:"rows"`
	Policies        int             `json:"policies"`
	Locks           int             `json:"locks"`
	Sessions        int             `json:"sessions"`
	Gateways        []GatewayStatus `json:"gateways"`
	Messages        uint64          `json:"messages"`
	Refused         uint64          `json:"refused"`
	Repeats         uint64          `json:"repeats"`
	Deltas          uint64          `json:"deltas"`
	Resyncs         uint64          `json:"resyncs"`
	Lists           uint64          `json:"lists"`
	NotModified     uint64          `json:"not_modified"`
	Enrolled        uint64          `json:"enrolled"`
	AuditDropped    uint64          `json:"audit_dropped"`
	Differed        uint64          `json:"differed"` // reports of gateways that had something else in force than they were given
	Handshakes      Handshakes      `json:"handshakes"`
}

// Handshakes counts the connections to the ports since the start.
type Handshakes struct {
	TLS     uint64 `json:"tls"`
	TLCP    uint64 `json:"tlcp"`
	Failed  uint64 `json:"failed"`
	Refused uint64 `json:"refused"` // beyond the bounds of half-open connections

	Reasons map[string]uint64 `json:"reasons"` // failed and refused ones, by reason
}

// GatewayStatus is one gateway as the control center sees it.
type GatewayStatus struct {
	ID             string        `json:"id"`
	Connected      bool          `json:"connected"`  // a push stream is open
	Identified     bool          `json:"identified"` // a T4 within 120 s
	LastIdentity   time.Time     `json:"last_identity,omitzero"`
	LastStatus     time.Time     `json:"last_status,omitzero"`
	LastAlert      time.Time     `json:"last_alert,omitzero"`
	GrantsAcked    uint64        `json:"grants_acked"`
	PoliciesAcked  uint64        `json:"policies_acked"`
	AckFault       string        `json:"ack_fault,omitempty"` // the newest list was not applied
	GrantsReported string        `json:"grants_reported,omitempty"`
	State          string        `json:"state,omitempty"`
	Outbox         string        `json:"outbox,omitempty"`
	Freshness      string        `json:"freshness,omitempty"` // of what it has in force, by its last status
	Differed       uint64        `json:"differed"`            // reports of something else in force than it was given
	Remote         string        `json:"remote_addr,omitempty"`
	Protocol       string        `json:"protocol,omitempty"` // of its link: tlcp, tls1.3 ...
	Suite          string        `json:"suite,omitempty"`
	LastDelivery   time.Duration `json:"last_delivery_ns,omitzero"` // commit to write of the newest push
}

// Status returns the state of s.
func (s *Server) Status() Status {
	out := Status{ID: s.cfg.ID, Time: s.cfg.Now(), Gateways: []GatewayStatus{},
		Messages: s.stats.messages.Load(), Refused: s.stats.refused.Load(), Repeats: s.stats.repeats.Load(), Deltas: s.stats.deltas.Load(),
		Resyncs: s.stats.resyncs.Load(), Lists: s.stats.lists.Load(), NotModified: s.stats.notModified.Load(), Enrolled: s.stats.enrolled.Load(), Differed: s.stats.differed.Load()}
	s.view(func(st *model.State) {
		out.Revision, out.GrantsVersion, out.PoliciesVersion = st.Rev, st.GrantsVersion, st.PoliciesVersion
		out.Users, out.Devices, out.Apps, out.Grants = len(st.Users), len(st.Parties), len(st.Apps), len(st.Grants)
		out.Rows, out.Policies, out.Locks, out.Sessions = len(st.Rows), len(st.Policies), len(st.Locks), len(st.Sessions)
	})
	why, failed := s.port.failures()
	out.Handshakes = Handshakes{s.port.tls.Load(), s.port.tlcp.Load(), failed, s.port.refused.Load(), why}
	if s.journal != nil {
		out.AuditDropped = s.journal.dropped.Load()
	}
	for _, p := range s.sortedParties() {
		if p.Kind != model.Gateway {
			continue
		}
		g := GatewayStatus{ID: p.ID, Identified: s.identified(p)}
		s.hub.with(p.ID, func(l *link) {
			g.Connected, g.LastIdentity, g.LastStatus, g.LastAlert = l.streams > 0, l.identified, l.status, l.alert
			grants, policies := l.acks[wire.GrantsList], l.acks[wire.PoliciesList]
			g.GrantsAcked, g.PoliciesAcked = grants.version, policies.version
			for _, a := range []ack{grants, policies} {
				if a.version > 0 && !a.applied {
					g.AckFault = a.result
				}
			}
			g.Freshness, g.Differed = l.freshness, l.differed
			g.GrantsReported, g.State, g.Outbox, g.Remote, g.LastDelivery = l.listVersion, l.state, l.outbox, l.remote, l.lastDelivery
			g.Protocol, g.Suite = l.protocol, l.suite
		})
		out.Gateways = append(out.Gateways, g)
	}
	return out
}
