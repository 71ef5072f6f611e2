// Package bpf is the guard: an XDP program that drops what nobody admitted
// before it costs anything, and its user space. It knows addresses, ports and
// reasons, and nothing of users or grants.
//
// The program is src/guard.bpf.c; its object guard_bpfel.o is committed, and
// `make generate` writes it anew without a difference. Every port of the
// guarded interface is closed but those of [Config]; who holds a [Ticket] opens
// one 5-tuple by the token in its first packet, or by a knock that user space
// answers with [Guard.OpenPort].
//
//	config.go   settings: read-only data of the program; new ones are a new
//	            program and one update of the link
//	load.go     Open, Attach, Detach: nothing passes unseen in between
//	pin.go      pins, and taking over what is pinned
//	tickets.go  tickets and openings
//	flows.go    the table of open 5-tuples, as the program fills it
//	deny.go     deny lists and the bitmap in front of them
//	known.go    the prefilter of sources that something may be open for
//	watch.go    counters, sampled drops, knocks
//	verdict.go  what the program decides, and why
//
// While nothing of this runs, the pinned program goes on: what expires closes,
// and nothing opens but by tickets that still count.
package bpf

import (
	"errors"
	"net/netip"
	"time"
	"unsafe"
)

// ErrUnsupported is in the errors of [Open] and [Guard.Attach] when this
// system cannot run the guard; the text says what it lacks.
var ErrUnsupported = errors.New("the guard is not supported here")

// Ticket lets whoever holds its key open 5-tuples. The zero Port is none.
type Ticket struct {
	Alias    [8]byte // its first bit is set
	Key      [16]byte
	Until    time.Duration // on the clock of [Now]
	Port     uint16
	Protocol uint8  // 6, 17; 0: any
	Knock    bool   // may knock
	Used     uint32 // counters up to this one count as used; 0: none
}

// Knock is a datagram to the knock port whose token was genuine and new.
type Knock struct {
	Alias  [8]byte
	Source netip.AddrPort
	Data   []byte // from its token on; valid until the callback returns
}

// Drop is one sampled packet that did not pass.
type Drop struct {
	Source   netip.AddrPort
	Port     uint16 // of the destination
	Protocol uint8
	Family   Family
	Verdict  Verdict
	Weight   uint32 // how many drops it stands for
	Length   uint32 // bytes, with the link header
}

// words returns a as the program has it: IPv4 is mapped, in network order.
func words(a netip.Addr) [4]uint32 {
	b := a.As16()
	return *(*[4]uint32)(unsafe.Pointer(&b))
}

func addressOf(w [4]uint32) netip.Addr {
	return netip.AddrFrom16(*(*[16]byte)(unsafe.Pointer(&w))).Unmap()
}

// swap turns a port from or into network order.
func swap(p uint16) uint16 { return p<<8 | p>>8 }
