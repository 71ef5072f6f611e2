package apps

import (
	"net"
	"strconv"
	"sync/atomic"
	"time"
)

// Upstream is one server of an application. A reload keeps it, with all that is
// known of it, while its URL stands.
type Upstream struct {
	Scheme string // http, https, tcp or udp
	Host   string // canonical name or address
	Port   uint16

	place uint64 // on the ring of consistent_hash

	active  atomic.Int64 // uses between Pick and Release
	faults  atomic.Int64 // weight of the faults in a row
	ejected atomic.Int64 // UnixNano until which it is passed over; 0: it is not
	times   atomic.Int64 // ejections without a good answer between
	trial   atomic.Bool  // one use tries it, after an ejection
	total   atomic.Uint64

	down  atomic.Bool            // active checks say so
	cause atomic.Pointer[string] // of the last change of down
}

// Outcome is what a use says of an upstream.
type Outcome uint8

// What a use may end with.
const (
	Neutral Outcome = iota // nothing: the client has gone, or the fault was its own
	Good                   // an answer that is no fault of the upstream
	Failing                // 502, 503 or 504 of the upstream's own
	Fault                  // not reached, no answer in time, or none that can be read
)

// An upstream is passed over after three faults in a row, or five failing
// answers: first for ejectFor, then twice as long each time up to ejectMost.
// When that is over one use tries it; the others pass over it still.
const (
	faultWeight   = 5
	failingWeight = 3
	weightToEject = 15
	ejectFor      = 10 * time.Second
	ejectMost     = 5 * time.Minute
)

// Addr returns host:port.
func (u *Upstream) Addr() string { return net.JoinHostPort(u.Host, strconv.Itoa(int(u.Port))) }

// String returns the upstream's URL.
func (u *Upstream) String() string { return u.Scheme + "://" + u.Addr() }

func (u *Upstream) network() string {
	if u.Scheme == "udp" {
		return "udp"
	}
	return "tcp"
}

// Release ends one use that [App.Pick] began.
func (u *Upstream) Release() { u.active.Add(-1) }

// Report says, once a use, what came of it; it may be long before Release.
func (u *Upstream) Report(o Outcome, now time.Time) {
	weight := int64(faultWeight)
	switch o {
	case Neutral:
		u.trial.Store(false)
		return
	case Good:
		if u.faults.Load() != 0 { // nearly never: no store on the way of every request
			u.faults.Store(0)
		}
		if u.ejected.Load() != 0 && u.ejected.Load() <= now.UnixNano() {
			u.ejected.Store(0)
			u.times.Store(0)
			u.trial.Store(false)
		}
		return
	case Failing:
		weight = failingWeight
	}
	if was := u.ejected.Load(); was > now.UnixNano() || u.faults.Add(weight) < weightToEject && was == 0 {
		return // ejected already, by what began before; or not enough
	}
	u.faults.Store(0)
	pause := min(ejectFor<<min(u.times.Add(1)-1, 10), ejectMost)
	u.ejected.Store(now.Add(pause).UnixNano())
	u.total.Add(1)
	u.trial.Store(false)
}

// usable reports whether u may be picked. try is true when that would be its
// trial, which the caller must take.
func (u *Upstream) usable(now int64) (ok, try bool) {
	if u.down.Load() {
		return false, false
	}
	until := u.ejected.Load()
	if until == 0 {
		return true, false
	}
	if until > now || u.trial.Load() {
		return false, false
	}
	return true, true
}

// UpstreamState is what is known of an upstream.
type UpstreamState struct {
	URL       string        `json:"url"`
	State     string        `json:"state"`             // up, down (checks fail), ejected, or trial
	Active    int64         `json:"active"`            // uses now
	Ejections uint64        `json:"ejections"`         // since the start
	Pause     time.Duration `json:"pause_ns,omitzero"` // until it is tried again
	Cause     string        `json:"cause,omitzero"`    // why checks fail
}

// States of upstreams.
const (
	stateUp      = "up"
	stateDown    = "down"
	stateEjected = "ejected"
	stateTrial   = "trial"
)

// Status returns what is known of u at now.
func (u *Upstream) Status(now time.Time) UpstreamState {
	s := UpstreamState{URL: u.String(), State: stateUp, Active: u.active.Load(), Ejections: u.total.Load()}
	until := u.ejected.Load()
	switch {
	case u.down.Load():
		s.State = stateDown
		if c := u.cause.Load(); c != nil {
			s.Cause = *c
		}
	case until > now.UnixNano():
		s.State, s.Pause = stateEjected, time.Duration(until-now.UnixNano())
	case until != 0:
		s.State = stateTrial
	}
	return s
}
