// Package privilege gives up what this process may do and needs no more, once
// its sockets are bound and its guard is attached: every capability that is not
// kept, new ones by exec, calls of the system that a server has no use for,
// changes of files that are not its own, core dumps and being traced. It holds
// for all threads and cannot be undone.
package privilege

import "errors"

// ErrUnsupported means that the system, or the way that the binary was built,
// does not allow it.
var ErrUnsupported = errors.New("privileges cannot be given up here")

// Capabilities that may be kept, as capability.h numbers them.
const (
	NetAdmin = 12
	BPF      = 39
)

// Config says what stays. The zero value keeps nothing.
type Config struct {
	Keep []int // capabilities
	Exec bool  // other programs may be run; they get no more than this process has
	BPF  bool  // maps of BPF are used
	// Write are the folders below which, and the files in which, something may be
	// changed, as far as they exist; nil: everywhere that modes allow.
	Write []string
}
