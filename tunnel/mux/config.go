package mux

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Handler is who takes what the peer says first. Its methods are called on the
// reader's goroutine, one at a time, and must not block; payloads are valid
// until they return.
type Handler interface {
	// Open is called for an OPEN (gateway only). The handler answers, now or
	// later, with Accept or Refuse, and closes an accepted flow in the end.
	Open(f *Flow, payload []byte)
	// Message is called for a MESSAGE. A reason other than OK ends the tunnel.
	Message(payload []byte) reason.Reason
}

// Config is what a [Session] needs. The zero value of a field selects its
// default; docs/tunnel.md §6 has the reasons.
type Config struct {
	Handler Handler // required

	// Answer opens the payload of the gateway's answer to an OPEN, on the
	// reader's goroutine and so in the order of the answers; it copies what it
	// returns. A reason other than OK ends the tunnel. Default: a copy. The
	// agent's end only.
	Answer func(payload []byte) ([]byte, reason.Reason)

	MaxFlows  int // flows at once; default 1024
	Window    int // credit of a flow in bytes, at first; default 1 MiB
	MaxWindow int // what it may grow to on a long path; default 4 times Window
	MinWindow int // what a flow has at least; default 16 KiB
	Budget    int // credit of all flows beyond their MinWindow, in bytes; default 16 MiB
	Datagrams int // bytes of buffers that a datagram flow queues; default 128 KiB
	Control   int // bytes of control records that wait; default 256 KiB

	OpenRate, OpenBurst       int // a second; default 256, 1024
	PingRate, PingBurst       int // a second; default 4, 16
	MessageRate, MessageBurst int // a second; default 16, 64
	WindowRate                int // a second, beside one for each 4 KiB sent; default 1024

	// RoundTrip returns the shortest round trip of the session's carrier, without
	// queues; 0 for not known. Default: not known, and windows do not grow beyond
	// Window.
	RoundTrip func(net.Conn) time.Duration

	HelloTimeout time.Duration // until Establish; default 10 s
	Farewell     time.Duration // for the last record when a tunnel ends; default 100 ms
	Keeper       *Keeper       // default: one of this session's own, of 10 s
}

func (c *Config) setDefaults() {
	for _, d := range []struct {
		field *int
		value int
	}{
		{&c.MaxFlows, 1024}, {&c.Window, 1 << 20}, {&c.MinWindow, 16 << 10}, {&c.Budget, 16 << 20},
		{&c.Datagrams, 128 << 10}, {&c.Control, 256 << 10}, {&c.OpenRate, 256}, {&c.OpenBurst, 1024},
		{&c.PingRate, 4}, {&c.PingBurst, 16}, {&c.MessageRate, 16}, {&c.MessageBurst, 64}, {&c.WindowRate, 1024},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.MaxWindow == 0 {
		c.MaxWindow = min(4*c.Window, maxCredit)
	}
	if c.HelloTimeout == 0 {
		c.HelloTimeout = 10 * time.Second
	}
	if c.Farewell == 0 {
		c.Farewell = 100 * time.Millisecond
	}
	if c.Answer == nil {
		c.Answer = func(p []byte) ([]byte, reason.Reason) { return append([]byte(nil), p...), reason.OK }
	}
	if c.Keeper == nil {
		c.Keeper = NewKeeper(10 * time.Second)
	}
}

// Validate returns every fault of c.
func (c *Config) Validate() error {
	d := *c
	d.setDefaults()
	var errs []error
	if d.Handler == nil {
		errs = append(errs, errors.New("handler: missing"))
	}
	if d.MinWindow < 1024 || d.Window < d.MinWindow || d.MaxWindow < d.Window || d.MaxWindow > maxCredit {
		errs = append(errs, fmt.Errorf("window: %d, at least %d, at most %d (1024 ≤ least ≤ window ≤ most)", d.Window, d.MinWindow, d.MaxWindow))
	}
	for name, n := range map[string]int{"max_flows": d.MaxFlows, "budget": d.Budget, "datagrams": d.Datagrams, "control": d.Control} {
		if n < 0 {
			errs = append(errs, fmt.Errorf("%s: %d is negative", name, n))
		}
	}
	return errors.Join(errs...)
}

// ClosedError says why a tunnel ended.
type ClosedError struct {
	Reason reason.Reason
	Remote bool  // the peer said so, or went away
	Cause  error // what the carrier said; may be nil
}

// Error returns the reason, and who ended the tunnel.
func (e *ClosedError) Error() string {
	who := "here"
	if e.Remote {
		who = "by the peer"
	}
	if e.Cause != nil {
		return fmt.Sprintf("tunnel closed %s: %s: %v", who, e.Reason, e.Cause)
	}
	return fmt.Sprintf("tunnel closed %s: %s", who, e.Reason)
}

// Unwrap returns what the carrier said.
func (e *ClosedError) Unwrap() error { return e.Cause }

// ResetError says why a flow ended before its end.
type ResetError struct {
	Reason reason.Reason
	Remote bool // the peer reset it
}

// Error returns the reason.
func (e *ResetError) Error() string { return "flow reset: " + e.Reason.String() }

// RefusedError says that the gateway refused an OPEN. Payload is the rest of
// the answer.
type RefusedError struct {
	Reason  reason.Reason
	Payload []byte
}

// Error returns the reason.
func (e *RefusedError) Error() string { return "open refused: " + e.Reason.String() }

// ErrBusy is returned when too many control records wait to be written.
var ErrBusy = errors.New("tunnel: too many control records wait")
