package tunnel

import (
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/wire"
)

// Notices of a tunnel: so many at once, then so many a second. What is beyond
// is counted: a thousand flows that are cut for one reason say the same.
const (
	noticeBurst = 64
	noticeRate  = 16
)

// maxNotice is the most characters of a notice's content.
const maxNotice = 2048

// Raise implements [alert.Sink]: an alert that concerns an agent's user and
// device goes to it as Table 15 (§8.3.3). It does not block.
func (s *Server) Raise(a alert.Alert) {
	e, ok := alert.Lookup(a.Code)
	switch {
	case !ok, !e.ToAgent, a.UserID == "" && a.DeviceID == "" && a.SessionID == "":
		return
	case a.Code == alert.SessionCut, a.Code == alert.RenewalMissed:
		return // told by the flow or tunnel that is cut, with its particulars
	}
	a.Reason = a.Reason.Public()
	for _, t := range s.find(access.Selector{SessionID: a.SessionID, UserID: a.UserID, DeviceID: a.DeviceID}) {
		t.tell(a)
	}
}

// Notify sends n to the agents that sel chooses; a selector without a field
// chooses none. It returns how many.
func (s *Server) Notify(sel access.Selector, n *wire.Notice) (int, error) {
	body, err := wire.Encode(n)
	if err != nil {
		return 0, err
	}
	sent := 0
	for _, t := range s.find(sel) {
		if t.send(body) {
			sent++
		}
	}
	return sent, nil
}

// find returns the tunnels whose hello was accepted and that sel chooses.
func (s *Server) find(sel access.Selector) []*tunnel {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := s.tunnels
	switch {
	case sel.DeviceID != "":
		from = s.byDevice[sel.DeviceID]
	case sel.UserID != "":
		from = s.byUser[sel.UserID]
	case sel.SessionID == "" && sel.AgentID == "":
		return nil
	}
	var out []*tunnel
	for t := range from {
		if t.ready.Load() && len(t.links) > 0 && t.links[0] == t && matches(sel.DeviceID, t.id.Device) && matches(sel.UserID, t.userID) && matches(sel.AgentID, t.id.Agent) && matches(sel.SessionID, t.key) {
			out = append(out, t)
		}
	}
	return out
}

func matches(want, have string) bool { return want == "" || want == have }

// tell sends a as Table 15, in both languages (M85).
func (t *tunnel) tell(a alert.Alert) {
	s := t.srv
	if a.Time.IsZero() {
		a.Time = s.cfg.Now()
	}
	if e, ok := alert.Lookup(a.Code); ok && a.Level == 0 {
		a.Level = e.Level
	}
	body, err := wire.Encode(&wire.Notice{
		GatewayID: s.cfg.GatewayID, DeviceID: s.cfg.DeviceID, Timestamp: wire.FormatTime(a.Time),
		ExceptionAlertType: string(a.Code), ExceptionAlertLevel: int(a.Level),
		ExceptionAlertContent: wire.CleanText(a.Content(reason.Chinese, s.cfg.DeviceID)+" | "+a.Content(reason.English, s.cfg.DeviceID), maxNotice),
	})
	if err != nil || !t.send(body) {
		s.metrics.noticesLost.Inc()
	}
}

// send sends the JSON of Table 15, within the tunnel's allowance: over t, or
// over another connection when that is ending.
func (t *tunnel) send(body []byte) bool {
	if !t.ready.Load() || !t.mayTell(t.srv.cfg.Now()) {
		return false
	}
	if t.seal.Seal(carrier.Notice, body, t.mux.Send) == nil {
		t.srv.metrics.notices.Inc()
		return true
	}
	for _, l := range t.connections() {
		if l != t && l.seal.Seal(carrier.Notice, body, l.mux.Send) == nil {
			t.srv.metrics.notices.Inc()
			return true
		}
	}
	return false
}

func (t *shared) mayTell(now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.noticeAt.IsZero() {
		t.notices = min(noticeBurst, t.notices+now.Sub(t.noticeAt).Seconds()*noticeRate)
	}
	t.noticeAt = now
	if t.notices < 1 {
		return false
	}
	t.notices--
	return true
}
