// Package ctlclient is the link to a control center, for the gateway (CSA GCR
// 002-2025 clause 7) and for the agent (clause 9).
//
// A gateway's link is [Gateway]: it proves its device (Tables 4 and 5), pulls
// the lists (Tables 6 to 9) and has changes pushed, and sends its status (Table
// 10) and alerts (Table 11) through an [Outbox], so that what cannot be sent now
// is sent later with the time at which it happened. An agent's link is [Agent]:
// Tables 16 to 22.
//
// A list is given to the [Handler] only when it is verified to its last byte:
// [Verifier] reads it, from the link, from the state folder or from a file. A
// fault of the envelope refuses the whole list; a bad row of a genuine list is
// named in its Faults and is for the handler to close.
//
// Start reading at [Gateway.Run], then session.go, which is one connection's
// life in order, then verify.go.
package ctlclient
