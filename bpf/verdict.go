package bpf

import (
	"fmt"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Verdict is what the guard decided about a packet, and why. The numbers are
// those of src/guard.h. Below 32 the packet passes.
type Verdict uint8

// Verdicts that let a packet pass.
const (
	PassARP         Verdict = 1
	PassNeighbour   Verdict = 2
	PassICMP        Verdict = 3
	PassDHCP        Verdict = 4
	PassPublished   Verdict = 5
	PassManagement  Verdict = 6
	PassEstablished Verdict = 7
	PassReply       Verdict = 8
	PassFlow        Verdict = 9
	PassPermit      Verdict = 10
	PassToken       Verdict = 11
	PassPing        Verdict = 12
	PassCookie      Verdict = 13 // a SYN that the guard answered
)

// Verdicts that drop it.
const (
	DropMalformed     Verdict = 32
	DropLink          Verdict = 33
	DropProtocol      Verdict = 34
	DropFragment      Verdict = 35
	DropExtension     Verdict = 36
	DropSource        Verdict = 37
	DropUnauthorized  Verdict = 38
	DropDenied        Verdict = 39
	DropRate          Verdict = 40
	DropICMPRate      Verdict = 41
	DropICMPType      Verdict = 42
	DropTCPFlags      Verdict = 43
	TakeKnock         Verdict = 44 // taken for user space: no refusal
	DropKnockLost     Verdict = 45
	DropTicketUnknown Verdict = 46
	DropTicketExpired Verdict = 47
	DropTicketPort    Verdict = 48
	DropTicketRate    Verdict = 49
	DropTokenForged   Verdict = 50
	DropTokenReplayed Verdict = 51

	verdicts = 64
)

var passNames = map[Verdict]string{
	PassARP: "arp", PassNeighbour: "neighbour", PassICMP: "icmp", PassDHCP: "dhcp", PassPublished: "published",
	PassManagement: "management", PassEstablished: "established", PassReply: "reply", PassFlow: "flow",
	PassPermit: "permit", PassToken: "token", PassPing: "ping", PassCookie: "cookie",
}

// Passed reports whether the packet went on, or was answered.
func (v Verdict) Passed() bool { return v > 0 && v < DropMalformed }

// Action returns "pass", "drop", "take" for a knock, or "answer" for a SYN.
func (v Verdict) Action() string {
	switch {
	case v == PassCookie:
		return "answer"
	case v.Passed():
		return "pass"
	case v == TakeKnock:
		return "take"
	}
	return "drop"
}

// Reason returns why the packet was dropped; reason.OK when it passed.
func (v Verdict) Reason() reason.Reason {
	if v < DropMalformed {
		return reason.OK
	}
	return reason.GuardMalformed + reason.Reason(v-DropMalformed)
}

// String returns the name of why it passed, or of the reason.
func (v Verdict) String() string {
	if name, ok := passNames[v]; ok {
		return name
	}
	if v >= DropMalformed && v <= DropTokenReplayed {
		return v.Reason().String()
	}
	return fmt.Sprintf("verdict_%d", uint8(v))
}

// Family is the family of a packet, as counted.
type Family uint8

// The families.
const (
	Other Family = iota // no IP
	IPv4
	IPv6
	families
)

// String returns the metric's label.
func (f Family) String() string { return [...]string{"other", "ipv4", "ipv6"}[f%families] }
