// Package policy turns the access grant list (访问授权清单, Tables 6 and 7,
// §7.3.2) and the security policies (安全策略, Tables 8 and 9, §7.3.3) of CSA GCR
// 002-2025 into an immutable [Snapshot] and decides on it. It is pure: no
// goroutine, no I/O, and time is an argument.
//
// Start with [Build] or, for lists that arrive page by page and for deltas,
// with [Builder]; then [Snapshot.Decide], and for people [Snapshot.Explain] and
// [Diff].
//
// # What a list of policies means
//
// Every type only restricts. A policy has the scopes of its bind row; a policy
// without one applies to everything. Rows of one type that share a scope are
// alternatives: one of them must hold. Types must all hold, and scopes must all
// hold; a row of type ipdeny and a lock win over everything. The order of rows
// never matters.
//
// An unbound policy stands alone: it is nobody's alternative. So a policy that
// loses its bind row turns into a restriction of everything and opens nothing.
// For the same reason a policy has one bind row, which may name several scopes
// (POL00000007 APP00000001,APP00000002): with two, the loss of one would widen.
// A policy with two different bind rows is a [Fault] and counts as unbound. To
// make alternatives that apply to everything, bind them to *.
//
// A row that cannot be read, or whose type is unknown, closes its scope. So does
// a bind row whose policy is missing, because a restriction was lost. Policies
// of the local ceiling are a layer of their own: they hold beside those of the
// control center, which can neither remove them nor be their alternative.
//
// # What a list of grants means
//
// A row grants its user, on its device, the applications of appIdList until
// expirationDate. An absent or empty list grants nothing, and so does a row that
// cannot be read. Two different rows of one (user, device) grant nothing, both:
// a list is a state, not a log, so neither row is the newer one. A token that
// stands in rows of two devices opens nothing.
package policy

import (
	"net/netip"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// BrowserDevice is the deviceId of the browser device class: the rows that a
// session without a verified device certificate may use.
const BrowserDevice = "BROWSER0000"

// Facts is what is known of a session. A missing fact, the zero value, fails
// the policy that asks for it. Where the grant row states a fact too, the
// narrower of the two counts.
type Facts struct {
	SessionID string
	UserID    string
	DeviceID  string    // of the leaf that proved its key; empty for a browser
	AgentID   string    //
	Token     string    // authToken of Tables 12, 14 and 18; empty: rows are found by (user, device)
	Browser   bool      // no verified device certificate: only rows of the browser device
	Level     int       // of the sign-in (acr); 0 unknown
	Factors   Factors   // of the sign-in (amr)
	AuthTime  time.Time // of the sign-in (auth_time); zero unknown
	Expires   time.Time // of the proof (cookie, access token): it allows nothing from then on; zero: it does not end
	Posture   Score     // of the device
	Risk      Score     //
}

// Request is what is known of one request or flow. Method and Path are empty
// for TCP and UDP flows. Path is the canonical path, the same that the upstream
// gets. The strings must not alias a buffer that is used again.
type Request struct {
	Remote   netip.Addr
	Protocol Protocol
	Method   string
	Path     string
}

// Row is a row of Table 7 with its extension facts (header.ext rows).
type Row struct {
	wire.Grant
	Level    int
	Factors  Factors
	AuthTime time.Time
	Posture  Score
	Risk     Score
	Sum      wire.Sum // of the row as it was sent, for the state hash
}

// App is an application of the gateway's configuration.
type App struct {
	ID            string
	Level         int  // lowest sign-in level; 0: any
	RefuseBrowser bool // refuse the browser device class
}

// Lock denies everything to its subject while it is in force.
type Lock struct {
	Kind    string    `json:"kind"` // user, device, agent, app or session
	ID      string    `json:"id"`
	Message string    `json:"message,omitzero"` // shown to the subject
	Until   time.Time `json:"until,omitzero"`   // zero: until it is removed
}

// BadRow is a row of Table 9 that the wire format could not even decode. What
// is known of it is filled in.
type BadRow struct {
	Index    int
	PolicyID string
	Err      error
}

// Input is everything that a [Snapshot] is made of.
type Input struct {
	Apps          []App
	Grants        []Row
	Policies      []wire.Policy // of the control center
	Ceiling       []wire.Policy // of the local configuration
	Locks         []Lock
	BadPolicies   []BadRow  // rows of Policies that could not be decoded: their scopes are closed
	Version       uint64    // of the grants
	PolicyVersion uint64    // of the policies and locks
	NotAfter      time.Time // of the older of the two lists; zero: no end
	NoList        bool      // no list has arrived yet: everything is denied so
	BrowserDevice string    // default [BrowserDevice]
	Key           *TokenKey // default: a fresh one
}

// Decision is the answer to one question.
type Decision struct {
	Reason    reason.Reason // OK: allowed
	PolicyID  string        // the policy that denied
	Message   string        // of the lock that denied
	RecheckAt time.Time     // when allowed: the time at which it must be looked at again; zero: none
	Limited   bool          // when allowed: rate or maxconn apply, see [Snapshot.Limits]
}
