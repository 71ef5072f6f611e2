package ctlclient

import (
	"errors"
	"fmt"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/reason"
)

// ErrDown is wrapped by every error that means that the control center cannot
// be used now: unreachable, slow, redirecting, or answering with what is no
// signed answer of its own.
var ErrDown = errors.New("the control center does not answer properly")

// ErrUnreachable is wrapped, beside [ErrDown], by the errors of the connection:
// no answer came at all.
var ErrUnreachable = errors.New("no connection to the control center")

// RefusedError says that the control center refused a message by a signed
// answer (Tables 5 and 18). Result is its text as it came.
type RefusedError struct {
	Table  int
	Reason reason.Reason // as far as Result names one; else MessageInvalid
	Result string
	// Message is what the operator says to a person whom a lock shuts out, ""
	// for nothing.
	Message string

	reply *envelope.Message // which carries it
}

// Error names the table and the result.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("send table %d: the control center refused it: %s", e.Table, e.Result)
}
