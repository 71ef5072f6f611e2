package access

import (
	"cmp"
	"slices"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Selector chooses sessions; all fields that are set must match. With AppID
// only the flows to that application are meant.
type Selector struct{ SessionID, UserID, DeviceID, AgentID, AppID string }

func (x Selector) match(s *Session) bool {
	f := s.subject.Load().Identity()
	is := func(want, got string) bool { return want == "" || want == got }
	return (is(x.SessionID, s.id) || x.SessionID == whole(s.id)) && is(x.UserID, f.UserID) && is(x.DeviceID, f.DeviceID) && is(x.AgentID, f.AgentID)
}

// Cut cuts what sel chooses, for r, and returns the number of leases. Without
// AppID the sessions end and sign-ins are revoked; with it only the flows to
// the application end. Nothing is chosen by an empty Selector. What may be
// granted again is granted again at the next request: to keep somebody out,
// lock.
func (a *Access) Cut(sel Selector, r reason.Reason) int {
	if sel == (Selector{}) {
		return 0
	}
	start, n := a.cfg.Now(), 0
	for _, s := range a.sessions.all() {
		if !sel.match(s) {
			continue
		}
		if sel.AppID == "" {
			// A sign-in must be made anew. A session by certificate alone has none to
			// revoke: its id is the certificate's and would be shut out for good.
			if f := s.Facts(); f.Token != "" || !f.AuthTime.IsZero() {
				a.revoked.addSession(s.id, start)
			}
			n += a.end(s, r, start)
			continue
		}
		m := 0
		for _, l := range s.copyLeases(nil) {
			if a.handleID(l.app) == sel.AppID && a.cut(l, r, start) {
				m++
			}
		}
		a.reportCut(s, sel.AppID, r, m, start)
		n += m
	}
	return n
}

// EndAll ends every session for r, and returns the number of leases that were
// cut. Nobody is revoked.
func (a *Access) EndAll(r reason.Reason) (n int) {
	start := a.cfg.Now()
	for _, s := range a.sessions.all() {
		n += a.end(s, r, start)
	}
	return n
}

// SessionInfo is what an operator sees of a session.
type SessionInfo struct {
	ID       string         `json:"session_id"`
	UserID   string         `json:"user_id"`
	DeviceID string         `json:"device_id,omitzero"`
	AgentID  string         `json:"agent_id,omitzero"`
	Browser  bool           `json:"browser,omitzero"`
	Level    int            `json:"level,omitzero"`
	Since    time.Time      `json:"since"`
	LastUsed time.Time      `json:"last_used"`
	Renewed  time.Time      `json:"renewed,omitzero"`  // updateTime of the newest Table 14
	Protocol string         `json:"protocol,omitzero"` // of the newest connection: tls1.2, tls1.3, tlcp
	Suite    string         `json:"suite,omitzero"`    // its cipher suite
	Leases   int            `json:"leases"`
	Apps     map[string]int `json:"apps,omitzero"` // leases by application
	Kinds    map[string]int `json:"kinds,omitzero"`
}

// Channels counts the live sessions by protocol and cipher suite, such as
// "tlcp ECC_SM4_GCM_SM3".
func (a *Access) Channels() map[string]int {
	out := map[string]int{}
	for _, s := range a.sessions.all() {
		if c := s.channel.Load(); c != nil {
			out[c.protocol+" "+c.suite]++
		}
	}
	return out
}

// Sessions returns the live sessions in the order of their ids.
func (a *Access) Sessions() []SessionInfo {
	var out []SessionInfo
	for _, s := range a.sessions.all() {
		f := s.Facts()
		i := SessionInfo{ID: s.id, UserID: f.UserID, DeviceID: f.DeviceID, AgentID: f.AgentID, Browser: f.Browser, Level: f.Level,
			Since: s.since, LastUsed: time.Unix(0, s.lastUsed.Load()), Apps: map[string]int{}, Kinds: map[string]int{}}
		if c := s.channel.Load(); c != nil {
			i.Protocol, i.Suite = c.protocol, c.suite
		}
		for _, l := range s.copyLeases(nil) {
			i.Leases++
			i.Apps[a.handleID(l.app)]++
			i.Kinds[l.kind.String()]++
		}
		s.mu.Lock()
		i.Renewed = s.updated
		s.mu.Unlock()
		out = append(out, i)
	}
	slices.SortFunc(out, func(x, y SessionInfo) int { return cmp.Compare(x.ID, y.ID) })
	return out
}

// Stats are counts for the status page.
type Stats struct {
	Sessions      int       `json:"sessions"`
	Leases        int       `json:"leases"`
	Version       uint64    `json:"list_version"`
	PolicyVersion uint64    `json:"policy_version"`
	NotAfter      time.Time `json:"not_after,omitzero"`
	NoList        bool      `json:"no_list,omitzero"`
	Rows          int       `json:"grant_rows"`
	BadRows       int       `json:"bad_rows"`
	Policies      int       `json:"policies"`
	Locks         int       `json:"locks"`
	Faults        int       `json:"faults"`
	Storing       bool      `json:"storing,omitzero"` // a list is narrowed and not yet stored
}

// Stats returns the counts.
func (a *Access) Stats() Stats {
	st := a.state.Load()
	s := Stats{Sessions: int(a.sessions.n.Load()), NotAfter: st.snap.NotAfter(), NoList: st.snap.NoList(),
		Locks: len(a.Locks()), Faults: int(a.faults.Load()), Storing: st.next != nil}
	s.Version, s.PolicyVersion = st.snap.Version()
	s.Rows, s.BadRows, s.Policies = st.snap.Counts()
	for k := range a.metrics.leases {
		s.Leases += int(a.metrics.leases[k].Load())
	}
	return s
}
