package wire

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// TypeReport is what an agent says every minute, in one message in place of
// three: Tables 16 and 21, the state of its device, and which resource list it
// has. Its answer has Table 18 and, when that list is not the present one,
// Table 19. It pays for one signature and one seal each way.
const TypeReport = "X.report"

// AgentReport is the body of X.report.
type AgentReport struct {
	Authentication jsontext.Value `json:"authentication"`      // Table 16 without factors (Q25)
	Status         jsontext.Value `json:"status,omitempty"`    // Table 21
	Posture        *Posture       `json:"posture,omitempty"`   // absent: not known
	Resources      string         `json:"resources,omitempty"` // Tag of the resource list that the agent has
}

// Check reports what is wrong with m's form. The tables are for their readers.
func (m *AgentReport) Check() error {
	switch {
	case m.Authentication.Kind() != '{':
		return errors.New("check report: authentication is no object")
	case len(m.Status) > 0 && m.Status.Kind() != '{':
		return errors.New("check report: status is no object")
	case len(m.Resources) > maxTag:
		return fmt.Errorf("check report: the tag has %d characters, at most %d", len(m.Resources), maxTag)
	case m.Posture != nil:
		return m.Posture.Check()
	}
	return nil
}

const maxTag = 64

// AgentReportReply answers an X.report that is accepted; one that is refused
// gets Table 18.
type AgentReportReply struct {
	Authentication jsontext.Value   `json:"authentication"`      // Table 18
	Status         string           `json:"status,omitempty"`    // the result that refuses Table 21; absent: it was taken
	Resources      *TaggedResources `json:"resources,omitempty"` // absent: the agent has it
}

// TaggedResources is Table 19 with its extensions.
type TaggedResources struct {
	Tag      string          `json:"tag"`  // says which list this is; opaque, 1 to 64 characters
	List     jsontext.Value  `json:"list"` // Table 19
	Facts    []ResourceFacts `json:"facts,omitempty"`
	Gateways []GatewayRef    `json:"gateways,omitempty"`
}

// Check reports what is wrong with m's form.
func (m *AgentReportReply) Check() error {
	switch r := m.Resources; {
	case m.Authentication.Kind() != '{':
		return errors.New("check answer to a report: authentication is no object")
	case r != nil && (r.Tag == "" || len(r.Tag) > maxTag || r.List.Kind() != '{'):
		return errors.New("check answer to a report: a resource list without a tag, or none")
	}
	return nil
}

// PostureAnswer is what a look at a device found.
type PostureAnswer string

// The answers.
const (
	PostureUnknown PostureAnswer = "unknown"
	PostureYes     PostureAnswer = "yes"
	PostureNo      PostureAnswer = "no"
)

// Posture is the state of a device as its agent sees it.
type Posture struct {
	OS            string        `json:"os"`                // linux, windows, darwin
	Arch          string        `json:"arch"`              // as Go names it
	Name          string        `json:"name,omitempty"`    // as the system calls itself
	Version       string        `json:"version,omitempty"` // of the system
	Kernel        string        `json:"kernel,omitempty"`
	DiskEncrypted PostureAnswer `json:"diskEncrypted"` // of the disk that holds the system
	Firewall      PostureAnswer `json:"firewall"`
}

const maxPostureText = 128 // bytes of one field

// Check reports what is wrong with p.
func (p *Posture) Check() error {
	for name, s := range map[string]string{"os": p.OS, "arch": p.Arch, "name": p.Name, "version": p.Version, "kernel": p.Kernel} {
		if len(s) > maxPostureText || !utf8.ValidString(s) {
			return fmt.Errorf("check posture: %s has %d bytes, at most %d", name, len(s), maxPostureText)
		}
		for _, c := range s {
			if c < ' ' || c == 0x7f {
				return fmt.Errorf("check posture: %s has a control character", name)
			}
		}
	}
	for name, a := range map[string]PostureAnswer{"diskEncrypted": p.DiskEncrypted, "firewall": p.Firewall} {
		if a != PostureUnknown && a != PostureYes && a != PostureNo {
			return fmt.Errorf("check posture: %s is none of yes, no, unknown", name)
		}
	}
	return nil
}
