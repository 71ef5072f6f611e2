// Package mux carries many flows and messages over one connection: the records
// of docs/tunnel.md. Agent and gateway share it; it knows nothing of access,
// of the standard's tables or of cryptography.
//
// A [Session] is one tunnel's connection. Its [Session.Run] is the only
// goroutine of an idle tunnel: it reads records, and never writes nor waits for
// a consumer. Whoever has something to say writes on its own goroutine, and
// takes along what others left (write.go). A [Flow] is a [net.Conn] with
// half-close, reset with a reason, and credit (flow.go). What moves bytes
// between a flow and another connection is [Relay].
//
// Start at session.go, then read.go and write.go: one file for each direction
// of a record.
package mux
