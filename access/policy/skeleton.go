package policy

import (
	"errors"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

var errNotBuilt = errors.New("not built")

// TokenKey is the per-process key under which tokens are indexed.
type TokenKey struct{ key [32]byte }

// Snapshot is an immutable set of grants and policies.
type Snapshot struct{ in Input }

// Fault is a row that grants nothing, or that closes its scope.
type Fault struct {
	Grant    bool // a row of Table 7, else of Table 9
	Index    int  // of the row in its list; -1: in the ceiling or of a delta
	PolicyID string
	Type     string
	UserID   string
	DeviceID string
	Reason   reason.Reason
	Err      error
}

// Trace is the explanation of a decision.
type Trace struct{ Decision Decision }

// Change is one difference between two snapshots.
type Change struct{ Kind, ID, Text string }

// Build makes a snapshot of in.
func Build(in Input) (*Snapshot, []Fault) { return &Snapshot{in}, []Fault{{Err: errNotBuilt}} }

// Explain says how the decision comes about.
func (s *Snapshot) Explain(f Facts, appID string, r Request, now time.Time) Trace {
	return Trace{Decision{Reason: reason.NoList}}
}

// Diff returns what changed from a to b.
func Diff(a, b *Snapshot) []Change { return nil }
