//go:build !linux

package privilege

// Drop is for Linux only.
func Drop(Config) error { return ErrUnsupported }

// WithoutCapabilities calls f: there are none here.
func WithoutCapabilities(f func() error) error { return f() }
