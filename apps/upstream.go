package apps

import (
	"net"
	"strconv"
	"sync/atomic"
	"time"
)

// Upstream is one server of an application.
type Upstream struct {
	Scheme string // http, https, tcp or udp
	Host   string // canonical name or address
	Port   uint16

	active  atomic.Int64 // uses between Pick and Done
	faults  atomic.Int64 // faults in a row
	ejected atomic.Int64 // UnixNano until which it is passed over
}

const (
	faultsToEject = 3
	ejectFor      = 10 * time.Second
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

// Done ends one use that [App.Pick] began. ok is false when the upstream could
// not be reached or gave no answer: three times in a row pass it over for 10 s.
func (u *Upstream) Done(ok bool, now time.Time) {
	u.active.Add(-1)
	if ok {
		u.faults.Store(0)
		return
	}
	if u.faults.Add(1) >= faultsToEject {
		u.faults.Store(0)
		u.ejected.Store(now.Add(ejectFor).UnixNano())
	}
}

// Pick returns the upstream for one use and counts it; the caller must call
// Done. kinds are the schemes that serve. Upstreams that failed lately are
// passed over while another is left. It returns nil when there is none of the
// wanted kind.
func (a *App) Pick(now time.Time, kinds ...string) *Upstream {
	u := a.pick(now.UnixNano(), kinds, false)
	if u == nil {
		u = a.pick(now.UnixNano(), kinds, true) // all are ejected: better one of them than none
	}
	if u != nil {
		u.active.Add(1)
	}
	return u
}

func (a *App) pick(now int64, kinds []string, ejectedToo bool) *Upstream {
	var best *Upstream
	n := len(a.Upstreams)
	start := 0
	if n > 1 {
		start = int(a.next.Add(1) % uint64(n))
	}
	for i := range n {
		u := a.Upstreams[(start+i)%n]
		if !u.is(kinds) || !ejectedToo && u.ejected.Load() > now {
			continue
		}
		if a.balance == roundRobin {
			return u
		}
		if best == nil || u.active.Load() < best.active.Load() {
			best = u
		}
	}
	return best
}

func (u *Upstream) is(kinds []string) bool {
	for _, k := range kinds {
		if u.Scheme == k {
			return true
		}
	}
	return false
}
