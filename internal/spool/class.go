package spool

import "time"

// Class is the kind of a record. A lower class is sent first and dropped last.
type Class uint8

// The classes.
const (
	Alert    Class = iota // Tables 11 and 22
	Identity              // Tables 4 and 16, and refused requests
	Audit                 // audit records
	Status                // Tables 10 and 21
	NumClasses
)

// String returns the class's name, which is its folder and metric label.
func (c Class) String() string {
	if c < NumClasses {
		return [...]string{"alert", "identity", "audit", "status"}[c]
	}
	return "unknown"
}

// lazy reports whether Append of the class returns before the sync.
func (c Class) lazy() bool { return c == Audit }

// vital reports whether a full disk makes room for the class.
func (c Class) vital() bool { return c <= Identity }

// Reason says why records are in a gap.
type Reason uint8

// The reasons.
const (
	OverCap Reason = 1 + iota // the class's cap, or that of all
	GaveWay                   // a full disk: dropped for a higher class
	Refused                   // could not be written, and Append said so
	Damaged                   // its bytes are not those that were written
	Missing                   // it was here and is not
	Several                   // more than one of these: neighbouring gaps made one
	NumReasons
)

// String returns the reason's metric label.
func (r Reason) String() string {
	if r >= OverCap && r <= Several {
		return [...]string{"over_cap", "gave_way", "refused", "damaged", "missing", "several"}[r-1]
	}
	return "unknown"
}

// Gap names records that will never come: Count of the sequence numbers From to
// To. The others between them were acknowledged, or were gap records.
type Gap struct {
	From, To uint64
	Count    uint64
	Reason   Reason
	At       time.Time // when it was found or made
}

// Record is one record of a class.
type Record struct {
	Seq     uint64
	At      time.Time // when it was appended
	Payload []byte    // the caller's own copy; nil for a gap record
	Gaps    []Gap     // set in a gap record: what was lost
}

// ClassStats are the figures of one class.
type ClassStats struct {
	Pending    int                // records that wait, gap records included
	Bytes      int64              // of the class's segments on disk
	Segments   int                // files
	Appended   uint64             // since opening
	Acked      uint64             // since opening
	Dropped    uint64             // since opening: the sum of Count of its gaps
	DroppedFor [NumReasons]uint64 // Dropped by reason
	Syncs      uint64             // since opening
	LastSeq    uint64             // of the newest record ever appended
	Oldest     time.Time          // when the oldest pending record was appended
}

// Stats are the figures of a spool.
type Stats struct {
	Class   [NumClasses]ClassStats
	Torn    int  // bytes of torn tails found at opening
	Damaged int  // bad stretches, headers and cursors found since opening
	Failed  int  // writes and syncs that failed since opening
	Tight   bool // the disk is full: audit and status are refused
	Reserve bool // the reserve is in place
}

// EventKind says what an [Event] is about.
type EventKind uint8

// The kinds of events.
const (
	Filling    EventKind = 1 + iota // a class has reached 80 % of its cap
	Dropped                         // records went into a gap
	TornTail                        // opening passed over a torn tail
	Corruption                      // opening or reading met bytes that are not ours
	DiskFault                       // a write or sync failed; another segment takes over
	DiskFull                        // no space
	SpaceBack                       // the reserve is in place again
)

// String returns the kind's name.
func (k EventKind) String() string {
	if k >= Filling && k <= SpaceBack {
		return [...]string{"filling", "dropped", "torn_tail", "corruption", "disk_fault", "disk_full", "space_back"}[k-1]
	}
	return "unknown"
}

// Event is something that a person should know of.
type Event struct {
	Kind   EventKind
	Class  Class
	Count  uint64 // of records, with Dropped; of bytes, with TornTail
	Reason Reason // with Dropped
	File   string // with Corruption, the file's name
	Err    error  // with DiskFault and DiskFull
}
