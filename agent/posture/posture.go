// Package posture looks at the state of the device: which system it runs,
// whether its disk is encrypted, whether a firewall is on. Each look is a small
// [Probe] that needs no privilege and changes nothing; what a probe cannot see
// is unknown, never guessed.
package posture

import (
	"io/fs"
	"os"
	"runtime"
)

// Answer is what a probe found.
type Answer string

// The answers.
const (
	Unknown Answer = "unknown"
	Yes     Answer = "yes"
	No      Answer = "no"
)

// Report is the state of a device.
type Report struct {
	OS            string `json:"os"`                // linux, windows, darwin
	Arch          string `json:"arch"`              // as Go names it
	Name          string `json:"name,omitempty"`    // as the system calls itself
	Version       string `json:"version,omitempty"` // of the system
	Kernel        string `json:"kernel,omitempty"`
	DiskEncrypted Answer `json:"diskEncrypted"` // of the disk that holds the system
	Firewall      Answer `json:"firewall"`
}

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
	return r
}

// read returns a file's text, or "".
func read(at fs.FS, name string) string {
	b, err := fs.ReadFile(at, name)
	if err != nil {
		return ""
	}
	return string(b)
}
