package ctlclient

import (
	"context"
	"fmt"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// GrantRow is a row of Table 7 with its extension facts (Q31). A nil Posture or
// Risk, a zero Level or AuthTime is an absent fact: it fails each policy that
// asks for it.
type GrantRow struct {
	wire.Grant
	Level    int
	Factors  []int // types of Table 17
	AuthTime time.Time
	Posture  *int
	Risk     *int
	Sum      wire.Sum // of the row as it was sent, for the state hash
}

// RowFault is one bad row of a genuine list. A bad row of the grants grants
// nothing; a bad row of the policies closes its scope.
type RowFault struct {
	Row int    // index in the whole list
	ID  string // what could be read of whom it concerns: "USR.../DEV..." or a policyId; may be empty
	Err error
}

// Grants is a complete and verified access grant list (Tables 6 and 7).
type Grants struct {
	Version  uint64
	Digest   string // of the rows, whatever their order: the same version must have the same
	NotAfter time.Time
	Rows     []GrantRow
	Faults   []RowFault

	// Store makes the list survive a restart. A handler narrows, calls Store,
	// and widens when it returns nil: what is lost by a crash is then never a
	// revocation. It may be called more than once; a handler that does not call
	// it has it called afterwards. Nil when there is nothing to store.
	Store func() error
}

// Policies is a complete and verified policy list (Tables 8 and 9) with all
// the locks in force at its version. BadRows holds what could be read of each
// row that has a fault, so that its scope can be closed.
type Policies struct {
	Version  uint64
	Digest   string // of rows and locks, see [Grants.Digest]
	NotAfter time.Time
	Rows     []wire.Policy
	BadRows  []wire.Policy
	Locks    []wire.LockRow
	Faults   []RowFault

	Store func() error // see [Grants.Store]
}

// Delta is a verified change of the grants. The handler applies Remove, Locks
// and Revoke first and at once. With NarrowOnly set the change does not follow
// the version that the gateway holds: Rows and Unlocks are empty then, and a
// full list comes next.
type Delta struct {
	From, To   uint64
	Time       time.Time
	NarrowOnly bool
	Remove     []wire.PairRef
	Locks      []wire.LockRow
	Revoke     []wire.Revocation
	Rows       []GrantRow // each replaces the row of its user and device
	Unlocks    []wire.LockRef
	Faults     []RowFault // a pair with a fault is in Remove as well

	// Store makes the change survive a restart; see [Grants.Store].
	Store func() error

	// unclear: a bad row does not say whose it is, so only the full list can
	// tell what it should replace.
	unclear bool

	arrival uint64 // counts deltas as they come
}

// Handler takes what the control center decides. The calls come one after the
// other, from one goroutine; an error is reported to the control center as not
// applied. The handler owns what it is given.
type Handler interface {
	Grants(ctx context.Context, g *Grants) error
	Policies(ctx context.Context, p *Policies) error
	Delta(ctx context.Context, d *Delta) error
}

// ListError refuses a whole list or delta. Err has the detail for logs.
type ListError struct {
	List   wire.ListName
	Reason reason.Reason
	Err    error
}

// Error names the reason and the detail.
func (e *ListError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("verify %s: %s", e.List, e.Reason)
	}
	return fmt.Sprintf("verify %s: %s: %v", e.List, e.Reason, e.Err)
}

// Unwrap returns the detail.
func (e *ListError) Unwrap() error { return e.Err }
