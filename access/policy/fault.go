package policy

import (
	"errors"
	"fmt"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Fault is a row that could not be taken as it stands: a row of Table 7 then
// grants nothing, a row of Table 9 closes its scope or applies to everything.
type Fault struct {
	Grant    bool   // a row of Table 7, else of Table 9 or a lock
	Ceiling  bool   // a row of the local configuration
	Index    int    // of the row in its list
	PolicyID string //
	Type     string // policyType
	UserID   string //
	DeviceID string //
	Reason   reason.Reason
	Err      error
}

// Error describes the fault with its row and remedy.
func (f Fault) Error() string {
	if f.Grant {
		return fmt.Sprintf("read grant row %d (user %q, device %q): %v", f.Index, f.UserID, f.DeviceID, f.Err)
	}
	layer := ""
	if f.Ceiling {
		layer = "ceiling "
	}
	return fmt.Sprintf("read %spolicy %q of type %q: %v", layer, f.PolicyID, f.Type, f.Err)
}

// Unwrap returns the cause.
func (f Fault) Unwrap() error { return f.Err }

// What makes a row a fault; the other causes are in the grammars.
var (
	errPairTwice   = errors.New("two different rows of this user and device, both grant nothing (send one row)")
	errTokenTwice  = errors.New("the token stands in rows of two devices and opens nothing (draw each token at random)")
	errPolicyTwice = errors.New("two different rows of this policyId, its scope is closed (use another policyId)")
	errBoundTwice  = errors.New("two different bind rows of one policy, it applies to everything (name its scopes in one row)")
	errUnknownType = errors.New("unknown policyType, its scope is closed")
	errUndecoded   = errors.New("the row cannot be decoded, its scope is closed")
)
