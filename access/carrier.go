package access

import (
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
	kinds // their number
)

var kindNames = [kinds]string{"h1", "h2", "h3", "websocket", "sse", "tcp", "udp", "packet"}

// String returns the name that audit and metrics use.
func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return "unknown"
}

// Kinds returns every kind, for tests of completeness.
func Kinds() []Kind {
	out := make([]Kind, kinds)
	for i := range out {
		out[i] = Kind(i)
	}
	return out
}

// Carrier is the flow behind a lease, as the monitor sees it.
type Carrier interface {
	// Kind is asked once, in Acquire.
	Kind() Kind
	// Cut ends the flow for r. It is called at most once and never under a lock
	// of this package, but it may come before the caller of Acquire has the
	// lease in its hands. It must not block: it marks, wakes, and arms a
	// deadline; the carrier says its own goodbye and then calls Release.
	//
	// When Cut and Release race, Cut may still run when Release returns. A
	// carrier that is reused for another flow must therefore tell by itself
	// which lease it serves.
	Cut(r reason.Reason)
}

// Brief is what a Carrier may be, too: most of its flows are over at once, and it
// calls [Lease.Lasts] for one that is not over after a second. The record of the
// decision waits until then; a flow that ends before has one record, of its end.
type Brief interface{ Brief() bool }

// Describer is what a Carrier may be, too. Describe fills the fields of an
// audit record that access does not know: RequestID, FlowID, Suite, Upstream.
// It is called in Acquire, Lasts and Release, on their goroutines, under no
// lock, and must not keep the record.
type Describer interface{ Describe(*audit.Record) }
