package control

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/control/store"
	"github.com/yumen-zt/yumen/wire"
)

// hub holds the newest changes of the lists for the push streams, and what the
// gateways say of themselves. A stream keeps its own place in one shared ring,
// so a slow one costs the others nothing: when the ring has moved past it, it
// is told to pull (resync).
type hub struct {
	depth int

	mu    sync.Mutex
	ring  []published   // guarded by mu; ascending revisions, immutable
	floor uint64        // guarded by mu; streams below it must pull
	wake  chan struct{} // guarded by mu; closed at each change
	acked chan struct{} // guarded by mu; closed at each acknowledgement and at each end of a stream
	links map[string]*link
	lost  uint64 // guarded by mu; streams that fell behind the ring
}

// published is a change with the time of its publication, on the monotonic
// clock.
type published struct {
	*model.Change
	at time.Time
}

// link is one gateway as the control center sees it.
type link struct {
	streams      int
	attached     uint64    // streams so far
	since        time.Time // when the first of the open streams began, on the monotonic clock
	identified   time.Time // last good T4
	status       time.Time // last T10
	alert        time.Time // last T11
	posture      time.Time // last change of an agent's posture
	acks         map[wire.ListName]ack
	permits      *wire.PermitKeys // of its guard; nil: it has none
	listVersion  string           // as its last report says
	policyVer    string
	outbox       string
	state        string
	remote       string
	protocol     string // of the channel of the last T4
	suite        string
	freshness    string
	differed     uint64                   // reports of something else in force than was given
	ordered      map[wire.ListName]uint64 // version for which the whole list was ordered
	lastDelivery time.Duration            // newest push: commit to write
}

type ack struct {
	version uint64
	applied bool
	result  string
	at      time.Time // on the monotonic clock
}

func newHub(depth int, floor uint64) *hub {
	return &hub{depth: depth, floor: floor, wake: make(chan struct{}), acked: make(chan struct{}), links: map[string]*link{}}
}

// publish gives c to every stream. It never blocks.
func (h *hub) publish(c *model.Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.ring) >= h.depth {
		drop := max(1, h.depth/4)
		h.floor = h.ring[drop-1].Rev
		h.ring = slices.Delete(h.ring, 0, drop)
	}
	h.ring = append(h.ring, published{c, time.Now()})
	close(h.wake)
	h.wake = make(chan struct{})
}

// after returns the first change behind rev, or a channel that closes when
// there may be one, or [store.ErrCompacted].
func (h *hub) after(rev uint64) (*model.Change, <-chan struct{}, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if rev < h.floor {
		h.lost++
		return nil, nil, store.ErrCompacted
	}
	i, found := slices.BinarySearchFunc(h.ring, rev, func(c published, rev uint64) int { return cmp.Compare(c.Rev, rev) })
	if found {
		i++
	}
	if i < len(h.ring) {
		return h.ring[i].Change, nil, nil
	}
	return nil, h.wake, nil
}

// with calls f on the link of a gateway, under the lock.
func (h *hub) with(gateway string, f func(*link)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.links[gateway]
	if l == nil {
		l = &link{acks: map[wire.ListName]ack{}}
		h.links[gateway] = l
	}
	f(l)
}

// forget drops what is known of a gateway: it was removed.
func (h *hub) forget(gateway string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l := h.links[gateway]; l != nil && l.streams == 0 {
		delete(h.links, gateway)
	} else if l != nil {
		l.identified = time.Time{}
	}
}

// attach counts a stream of gateway, detach takes it away. newest says whether
// it is still the last that was attached.
func (h *hub) attach(gateway string) (newest func() bool) {
	var n uint64
	h.with(gateway, func(l *link) {
		if l.streams++; l.streams == 1 {
			l.since = time.Now()
		}
		l.attached++
		n = l.attached
	})
	return func() (yes bool) {
		h.with(gateway, func(l *link) { yes = l.attached == n })
		return yes
	}
}

func (h *hub) detach(gateway string) {
	h.with(gateway, func(l *link) { l.streams-- })
	h.signal()
}

// tookTo returns how long the change to version has been under way to gateway,
// on the monotonic clock. It is false when it was no news of the open stream,
// or was acknowledged before.
func (h *hub) tookTo(gateway string, version uint64) (took time.Duration, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.links[gateway]
	if l == nil || l.streams == 0 || l.acks[wire.GrantsList].version >= version {
		return 0, false
	}
	i, found := slices.BinarySearchFunc(h.ring, version, func(c published, rev uint64) int { return cmp.Compare(c.Rev, rev) })
	if !found || h.ring[i].at.Before(l.since) {
		return 0, false
	}
	return time.Since(h.ring[i].at), true
}

func (h *hub) ack(gateway string, a wire.Ack) {
	h.with(gateway, func(l *link) {
		if a.Version >= l.acks[a.List].version {
			l.acks[a.List] = ack{a.Version, a.Applied, a.Result, time.Now()}
		}
	})
	h.signal()
}

func (h *hub) signal() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.acked)
	h.acked = make(chan struct{})
}

// Acked says how one gateway took a version of the grants.
type Acked struct {
	GatewayID string        `json:"gateway_id"`
	Applied   bool          `json:"applied"`
	Result    string        `json:"result,omitempty"`
	After     time.Duration `json:"after_ns,omitzero"` // from the commit; zero: no answer yet
}

// waitAcks waits until every gateway that is connected now has acknowledged
// version of the grants, or has gone, or ctx ends. It returns how each of them
// took it, and how long after since by the monotonic clock.
func (h *hub) waitAcks(ctx context.Context, version uint64, since time.Time) []Acked {
	h.mu.Lock()
	var want []string
	for id, l := range h.links {
		if l.streams > 0 {
			want = append(want, id)
		}
	}
	h.mu.Unlock()
	slices.Sort(want)
	for {
		h.mu.Lock()
		acked, wake, missing := make([]Acked, 0, len(want)), h.acked, 0
		for _, id := range want {
			l, a := h.links[id], Acked{GatewayID: id, Result: "no acknowledgement yet"}
			switch {
			case l == nil || l.streams == 0:
				a.Result = "disconnected"
			case l.acks[wire.GrantsList].version >= version:
				k := l.acks[wire.GrantsList]
				a = Acked{GatewayID: id, Applied: k.applied, Result: k.result, After: max(k.at.Sub(since), 1)}
			default:
				missing++
			}
			acked = append(acked, a)
		}
		h.mu.Unlock()
		if missing == 0 {
			return acked
		}
		select {
		case <-ctx.Done():
			return acked
		case <-wake:
		}
	}
}
