package tunnel

import (
	"slices"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// The connections of one tunnel (docs/tunnel.md §1). Each proves by handshake and
// hello who it is of, has a key of its own, and carries its own flows to their
// end. Session, token, renewals, cuts, notices and budget are the tunnel's.

// nameSize is the length of a tunnel's name.
const nameSize = 16

// join makes t another connection of the tunnel that h names, if that is one of
// the same agent, device and user, with a token that counts there.
func (t *tunnel) join(h *wire.TunnelHello) reason.Reason {
	s := t.srv
	to := s.named(t.id.Device, string(h.Tunnel))
	switch {
	case to == nil:
		return reason.SessionUnknown
	case to.id.Agent != t.id.Agent:
		return reason.AgentMismatch
	case to.userID != h.UserID:
		return reason.UserMismatch
	}
	if !to.tokenCounts(h.AuthToken) {
		// A newer one, or a guess: access tells, and counts.
		was := to.session.Facts().Token
		if _, r := s.cfg.Access.Attach(policy.Facts{
			SessionID: to.key, UserID: h.UserID, DeviceID: t.id.Device, AgentID: t.id.Agent, Token: h.AuthToken,
		}); r != reason.OK {
			return r
		}
		to.mu.Lock()
		to.previous, to.until = was, s.cfg.Now().Add(rotation)
		to.mu.Unlock()
	}
	if r := to.session.Reason(); r != reason.OK {
		return r
	}
	return s.link(t, to)
}

// named returns the device's tunnel of a name, while it has a connection.
func (s *Server) named(device, name string) *shared {
	if len(name) != nameSize {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := range s.byDevice[device] {
		if t.name == name && len(t.links) > 0 {
			return t.shared
		}
	}
	return nil
}

// link makes t a connection of to, unless that has enough, or none any more.
func (s *Server) link(t *tunnel, to *shared) reason.Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(to.links) == 0, to.leaving.Load(): // close sees us, or we this
		return reason.SessionUnknown
	case len(to.links) >= s.cfg.Limits.Connections:
		return reason.TunnelLimit
	}
	t.mux.ShareBudget(to.links[0].mux)
	t.shared = to
	to.links = append(to.links, t)
	put(s.byUser, to.userID, t)
	return reason.OK
}

// known files the first connection of a tunnel under its user and its name.
func (s *Server) known(t *tunnel, h *wire.TunnelHello) {
	if h.Join {
		return // link did it
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(h.Tunnel) == nameSize {
		t.name = string(h.Tunnel)
	}
	t.userID = t.session.Facts().UserID
	t.links = append(t.links, t)
	put(s.byUser, t.userID, t)
}

// unlink takes an ended connection out of its tunnel, and reports whether it was
// the last one.
func (s *Server) unlink(t *tunnel) (last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.links = slices.DeleteFunc(t.links, func(l *tunnel) bool { return l == t })
	return len(t.links) == 0
}

// distinct counts tunnels, whatever the number of their connections.
func distinct(conns map[*tunnel]struct{}) int {
	seen := make(map[*shared]struct{}, len(conns))
	for t := range conns {
		seen[t.shared] = struct{}{}
	}
	return len(seen)
}

// connections returns those whose hello was accepted.
func (w *shared) connections() []*tunnel {
	w.srv.mu.Lock()
	defer w.srv.mu.Unlock()
	return slices.Clone(w.links)
}

// close ends every connection of the tunnel for r; none joins any more.
func (w *shared) close(r reason.Reason) {
	w.leaving.Store(true)
	for _, l := range w.connections() {
		l.mux.Close(r)
	}
}

// abuse reports whether r is the end of a connection whose peer broke a rule.
func abuse(r reason.Reason) bool {
	switch r {
	case reason.FrameMalformed, reason.BudgetExceeded, reason.FrameRate, reason.MessageSealed:
		return true
	}
	return false
}

// Tunnels returns the open tunnels, in no order: also connections whose hello is
// awaited, each for itself.
func (s *Server) Tunnels() []Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Info
	for t := range s.tunnels {
		links := t.links
		switch {
		case len(links) == 0:
			links = []*tunnel{t}
		case links[0] != t:
			continue
		}
		x := Info{
			ID: t.key, AgentID: t.id.Agent, DeviceID: t.id.Device, UserID: t.userID, Remote: t.remote(), Protocol: t.conn.Protocol.String(), Suite: t.conn.Suite,
			Since: t.since, Renewed: time.Unix(0, t.renewed.Load()), BytesIn: t.in.Load(), BytesOut: t.out.Load(), Connections: len(links),
		}
		for _, l := range links {
			st := l.mux.Stats()
			x.Flows, x.Datagrams = x.Flows+st.Flows, x.Datagrams+st.Dropped
		}
		out = append(out, x)
	}
	return out
}
