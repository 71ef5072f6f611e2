// Package posture looks at the state of the device: which system it runs,
// whether its disk is encrypted, whether a firewall is on. Each look is a small
// [Probe] that needs no privilege and changes nothing; what a probe cannot see
// is unknown, never guessed.
package posture

import (
	"io/fs"
	"os"
	"runtime"
	"strings"
	"unicode/utf8"

	"github.com/yumen-zt/yumen/wire"
)

// Answer is what a probe found.
type Answer = wire.PostureAnswer

// The answers.
const (
	Unknown = wire.PostureUnknown
	Yes     = wire.PostureYes
	No      = wire.PostureNo
)

// Report is the state of a device.
type Report = wire.Posture

// Probe looks at one thing and notes it.
type Probe interface {
	Look(r *Report)
}

// Look asks every probe. Without probes it asks the system's own.
func Look(probes ...Probe) Report {
	if probes == nil {
		probes = system(os.DirFS("/"))
	}
	r := Report{OS: runtime.GOOS, Arch: runtime.GOARCH, DiskEncrypted: Unknown, Firewall: Unknown}
	for _, p := range probes {
		p.Look(&r)
	}
	for _, s := range []*string{&r.Name, &r.Version, &r.Kernel} {
		*s = clean(*s)
	}
	return r
}

// clean makes a system's own words fit for a report.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return -1
		}
		return r
	}, s)
	for len(s) > 128 {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

// read returns a file's text, or "".
func read(at fs.FS, name string) string {
	b, err := fs.ReadFile(at, name)
	if err != nil {
		return ""
	}
	return string(b)
}
