// Package profile is the setting `crypto.profile` of every part: which of the
// two worlds of cryptography its channels speak.
//
//	gm      TLCP alone: TLS is refused
//	mixed   both where others connect; own links run over TLCP (the default)
//	intl    TLS alone: TLCP is refused
//
// Nothing falls from TLCP back to TLS by itself: which of them a link uses is
// configuration, and a peer that speaks only the other is an error.
package profile

import "fmt"

// Profile is a value of `crypto.profile`. The empty one is [Mixed].
type Profile string

// The profiles.
const (
	GM    Profile = "gm"
	Mixed Profile = "mixed"
	Intl  Profile = "intl"
)

// Config is the part `crypto:` of a configuration file.
type Config struct {
	Profile Profile `yaml:"profile"` // gm, mixed or intl; default mixed
}

// Check returns an error for a value that is no profile.
func (p Profile) Check() error {
	switch p {
	case "", GM, Mixed, Intl:
		return nil
	}
	return fmt.Errorf("%q is none of gm, mixed and intl", string(p))
}

// String returns the profile's name.
func (p Profile) String() string {
	if p == "" {
		return string(Mixed)
	}
	return string(p)
}

// TLS reports whether listeners take TLS.
func (p Profile) TLS() bool { return p != GM }

// TLCP reports whether listeners take TLCP, and own links use it.
func (p Profile) TLCP() bool { return p != Intl }
