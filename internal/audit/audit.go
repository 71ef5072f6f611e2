// Package audit holds the audit record of CSA GCR 002-2025 §6.4: subject,
// object, time, result and address at least, one record for every decision and
// every operation on an interface.
//
// access writes the records of decisions and of the ends of leases, so that no
// carrier can forget them; the other parts write the records of their own
// operations.
package audit

import (
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Kind says what was done.
type Kind string

// The kinds of records.
const (
	Login     Kind = "login"     // a sign-in, or a tunnel's authentication
	Logout    Kind = "logout"    //
	Decision  Kind = "decision"  // access asked for: allowed or refused
	End       Kind = "end"       // a lease ended: with bytes, duration and why
	Interface Kind = "interface" // an operation on an interface of the standard
	Admin     Kind = "admin"     // an operator's verb
	List      Kind = "list"      // a new list applied or refused
	System    Kind = "system"    // start, stop, reload
)

// Record is one audit record. Empty fields are left out. Strings that come from
// a peer are capped and escaped by the sink.
type Record struct {
	Time      time.Time     `json:"time"`
	Kind      Kind          `json:"kind"`
	GatewayID string        `json:"gateway_id,omitzero"`
	UserID    string        `json:"user_id,omitzero"`    // subject
	DeviceID  string        `json:"device_id,omitzero"`  // subject
	AgentID   string        `json:"agent_id,omitzero"`   // subject
	SessionID string        `json:"session_id,omitzero"` // subject
	UID       string        `json:"uid,omitzero"`        // subject of an operator's verb
	AppID     string        `json:"app_id,omitzero"`     // object
	Object    string        `json:"object,omitzero"`     // object that is no application: a table, a verb
	Carrier   string        `json:"carrier,omitzero"`    // h1, h2, websocket, tcp, udp
	FlowID    string        `json:"flow_id,omitzero"`
	RequestID string        `json:"request_id,omitzero"`
	Method    string        `json:"method,omitzero"`
	Path      string        `json:"path,omitzero"`
	Protocol  string        `json:"protocol,omitzero"` // tls1.3, tlcp ...
	Suite     string        `json:"suite,omitzero"`
	Remote    string        `json:"remote_addr"`
	Upstream  string        `json:"upstream,omitzero"`
	PolicyID  string        `json:"policy_id,omitzero"`
	Allowed   bool          `json:"allowed"`
	Result    string        `json:"result"`      // the reason's name
	Code      reason.Reason `json:"reason_code"` // the reason's number
	BytesIn   int64         `json:"bytes_in,omitzero"`
	BytesOut  int64         `json:"bytes_out,omitzero"`
	Duration  time.Duration `json:"duration_ns,omitzero"`
	Detail    string        `json:"detail,omitzero"`
}

// Sink takes records. Write never blocks and may be called from any goroutine;
// it copies what it keeps. What a sink cannot take it counts.
type Sink interface{ Write(*Record) }

// Discard drops every record.
var Discard Sink = discard{}

type discard struct{}

func (discard) Write(*Record) {}
