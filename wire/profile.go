package wire

// Profile says how the open points of the standard are read. The zero value is
// [Lax]: what real systems send, IPv6 included.
type Profile struct {
	// Strict takes the standard's letter: identifiers and tokens of exactly 11
	// characters, no unknown fields, times without fractions (Q4, Q8).
	Strict bool
	// IPv4Only refuses IPv6 literals in ip fields, whose text in the standard
	// is "digits and dots" (Q5).
	IPv4Only bool
	// ExtendedFactors takes authentication types 8 to 99 in Table 17 (Q22).
	ExtendedFactors bool
	// MaxBytes bounds a message; 0 means [MaxMessage].
	MaxBytes int

	sending bool // what we emit: lengths of ids as lax, everything else canonical
}

// The two published profiles. IPv6 under the strict one is Profile{Strict: true}.
var (
	Strict = Profile{Strict: true, IPv4Only: true}
	Lax    = Profile{}
)
