// Package access is the heart of the gateway: it knows the live sessions and
// the leases of everything that flows, decides with the current
// [policy.Snapshot], and cuts what loses its right.
//
// Everything that flows holds a [Lease]: an HTTP request or stream, a
// WebSocket, a body of server-sent events, a TCP or UDP flow. Acquire gives
// it, Release ends it, and in between the monitor may cut it through its
// [Carrier].
package access

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// Kind is what carries a flow.
type Kind uint8

// The kinds of carriers.
const (
	H1 Kind = iota
	H2
	H3
	WebSocket
	SSE
	TCP
	UDP
	Packet
)

// Kinds returns every kind.
func Kinds() []Kind { return []Kind{H1, H2, H3, WebSocket, SSE, TCP, UDP, Packet} }

// Carrier is the flow behind a lease, as the monitor sees it.
type Carrier interface {
	Kind() Kind
	// Cut ends the flow for r. It is called at most once, never under a lock,
	// and must not block.
	Cut(r reason.Reason)
}

// Describer is what a Carrier may be, too: it fills the fields of an audit
// record that access does not know (RequestID, FlowID, Suite, Upstream ...).
type Describer interface{ Describe(*audit.Record) }

// Config is what an [Access] needs.
type Config struct {
	GatewayID  string
	Audit      audit.Sink            // default: none
	Alerts     alert.Sink            // default: none
	Logger     *zap.Logger           // default: none
	Registerer prometheus.Registerer // default: none
	Now        func() time.Time      // default time.Now
	TokenKey   *policy.TokenKey      // default: a fresh one
}

// Access holds the live sessions and leases. Its methods are safe for
// concurrent use.
type Access struct{}

// Session is an authenticated subject.
type Session struct{}

// Lease is the live right of one flow to continue.
type Lease struct{}

// App is a small stable handle of an application. The zero App is invalid.
type App struct{ n uint32 }

// Refusal says why Acquire gave no lease. The zero value: it did.
type Refusal struct {
	Reason   reason.Reason
	PolicyID string
	Message  string
}

// Usage is what a flow used.
type Usage struct {
	BytesIn, BytesOut int64
	Status            int // of the HTTP response; 0: none
}

// Pair is a (user, device) of Table 7.
type Pair struct {
	UserID   string `json:"userId"`
	DeviceID string `json:"deviceId"`
}

// Delta is a change of the lists.
type Delta struct {
	From, To uint64
	Remove   []Pair
	Grants   []policy.Row
	Locks    []policy.Lock
	Unlocks  []policy.Lock // Kind and ID
	Revoke   []Revocation
}

// Revocation ends one session, or those of a user whose sign-in was before
// IssuedBefore.
type Revocation struct {
	SessionID    string
	UserID       string
	IssuedBefore time.Time
}

// Selector chooses sessions; its fields that are set must all match.
type Selector struct{ SessionID, UserID, DeviceID, AgentID, AppID string }

// SessionInfo is what an operator sees of a session.
type SessionInfo struct {
	ID, UserID, DeviceID, AgentID string
	Browser                       bool
	Since, LastUsed               time.Time
	Leases                        int
}

// Stats are counts for the status page.
type Stats struct {
	Sessions, Leases       int
	Version, PolicyVersion uint64
	NotAfter               time.Time
	Rows, Policies, Locks  int
	Faults                 int
}

// New returns an Access without a list: it denies everything.
func New(Config) *Access { return &Access{} }

// Run is the monitor. It blocks until ctx ends.
func (a *Access) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Apply builds a snapshot of in, swaps it in and rechecks every lease.
func (a *Access) Apply(in policy.Input) []policy.Fault { return nil }

// ApplyStored is Apply in the order of a list from the network: what in takes
// away is denied and cut first, then store is called, then the rest is swapped
// in. When store fails what was narrowed stays narrowed.
func (a *Access) ApplyStored(in policy.Input, store func() error) ([]policy.Fault, error) {
	return nil, nil
}

// Narrow denies at once what d takes away, and cuts it.
func (a *Access) Narrow(d Delta) {}

// ApplyDelta narrows by d, calls store, and swaps in the snapshot with d.
func (a *Access) ApplyDelta(d Delta, store func() error) ([]policy.Fault, error) { return nil, nil }

// App returns the handle of an application.
func (a *Access) App(id string) App { return App{} }

// Attach returns the live session f.SessionID, made when there is none.
func (a *Access) Attach(f policy.Facts) (*Session, reason.Reason) { return nil, reason.NoList }

// Renew is Table 14 (§8.3.2).
func (a *Access) Renew(s *Session, token string, at time.Time) reason.Reason { return reason.NoList }

// End ends s and revokes its id. It returns how many leases were cut.
func (a *Access) End(s *Session, r reason.Reason) int { return 0 }

// Acquire asks for the right of one flow.
func (a *Access) Acquire(s *Session, app App, r *policy.Request, c Carrier) (*Lease, Refusal) {
	return nil, Refusal{Reason: reason.NoList}
}

// Release ends the lease.
func (l *Lease) Release(u Usage) {}

// Session returns whose lease it is.
func (l *Lease) Session() *Session { return nil }

// ID returns the session's id.
func (s *Session) ID() string { return "" }

// Facts returns what is known of the session.
func (s *Session) Facts() policy.Facts { return policy.Facts{} }

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return nil }

// Reason says why the session ended; OK while it lives.
func (s *Session) Reason() reason.Reason { return reason.OK }

// Sessions returns the live sessions.
func (a *Access) Sessions() []SessionInfo { return nil }

// Cut cuts the sessions that sel chooses, for r.
func (a *Access) Cut(sel Selector, r reason.Reason) int { return 0 }

// Stats returns the counts.
func (a *Access) Stats() Stats { return Stats{} }

// Snapshot returns the snapshot in force.
func (a *Access) Snapshot() *policy.Snapshot { return nil }
