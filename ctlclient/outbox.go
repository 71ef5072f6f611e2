package ctlclient

import (
	"context"
	"errors"
	"time"
)

// Class orders what waits to be sent: a lower class goes first and is dropped
// last.
type Class uint8

// The classes of an outbox.
const (
	ClassAlert    Class = iota // Tables 11 and 22
	ClassIdentity              // Tables 4 and 16 that could not be sent in their time
	ClassAudit                 // audit records
	ClassStatus                // Tables 10 and 21
	NumClasses
)

// String returns the class's metric label.
func (c Class) String() string {
	if c < NumClasses {
		return [...]string{"alert", "identity", "audit", "status"}[c]
	}
	return "unknown"
}

// Entry is one record that waits. Its payload is a [Report] in JSON, with the
// message's id and the event's time, so that it can be sent again after any
// restart with the same id.
type Entry struct {
	Seq     uint64 // grows within a class, never reused
	Class   Class
	At      time.Time // when it was appended
	Payload []byte
}

// ErrOutboxFull is returned by Append when the record itself was refused.
var ErrOutboxFull = errors.New("append to outbox: full")

// Outbox keeps reports until the control center has acknowledged them. All
// methods may be called from any goroutine.
type Outbox interface {
	// Append stores payload, which it copies, and returns its sequence number.
	// A full outbox drops its oldest records of the class, counts them, and
	// still takes this one; only a record beyond every bound is refused.
	Append(ctx context.Context, c Class, payload []byte) (seq uint64, err error)
	// Next returns up to n records of the class with Seq > after, oldest first.
	Next(c Class, after uint64, n int) ([]Entry, error)
	// Ack forgets the records named. Unknown numbers are passed over.
	Ack(c Class, seqs ...uint64) error
	// Stats returns a figure for each class.
	Stats() [NumClasses]ClassStats
}

// ClassStats are the figures of one class.
type ClassStats struct {
	Pending  int       // records that wait
	Bytes    int64     // their payloads
	Appended uint64    // since the start
	Acked    uint64    // since the start
	Dropped  uint64    // since the start
	LastSeq  uint64    // of the newest record that is stored
	Oldest   time.Time // when the oldest pending record was appended
}
