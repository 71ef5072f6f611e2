// Package wire holds the messages of CSA GCR 002-2025: one Go type per table,
// with the field names of the standard. Each file holds one link: app.go
// (clause 6), gateway.go (clause 7), access.go (clause 8), agent.go (clause 9).
//
// Decode reads a message strictly (exact case, no duplicate or unknown keys)
// and tells a missing field from an empty one; Validate checks the values.
// Nothing here does I/O, keeps time or knows of keys.
package wire

// Message is one of the 22 tables.
type Message interface {
	// Table returns the number of the message's table, 1 to 22.
	Table() int
	// Validate checks every field against the table's rule. It returns nil or
	// an error that joins one [*FieldError] for each fault.
	Validate(Profile) error
}

// The values of code (Tables 2, 5, 13, 18): the standard knows these two (Q19).
const (
	Success = 200
	Failure = 400
)

// The values of state (Table 1).
const (
	Offline = 0
	Online  = 1
)

// The values of userAuthenticationMethod (Table 16).
const (
	MethodLocal      = 1
	MethodThirdParty = 2
)

// Limits of every message.
const (
	MaxMessage = 1 << 20 // bytes of one message, unless Profile.MaxBytes says otherwise
	MaxDepth   = 32      // nesting of objects and arrays, the message itself included
)
