package audit

import (
	"strings"
	"sync"
)

// Ring is a [Sink] that keeps the newest records in memory, for `yumen status`
// and for tests.
type Ring struct {
	mu    sync.Mutex
	buf   []Record // guarded by mu
	next  int      // guarded by mu; where the next one goes
	total uint64   // guarded by mu
}

// NewRing returns a ring of n records, at least one.
func NewRing(n int) *Ring { return &Ring{buf: make([]Record, 0, max(n, 1))} }

// Write implements [Sink].
func (r *Ring) Write(rec *Record) {
	c := *rec
	for _, s := range c.texts() {
		*s = strings.Clone(Clean(*s, MaxField))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total++
	if len(r.buf) < cap(r.buf) {
		r.buf = append(r.buf, c)
		return
	}
	r.buf[r.next] = c
	r.next = (r.next + 1) % len(r.buf)
}

// Last returns up to n records, the oldest first. They are the caller's.
func (r *Ring) Last(n int) []Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := append(append([]Record(nil), r.buf[r.next:]...), r.buf[:r.next]...)
	return all[max(0, len(all)-n):]
}

// Total returns how many records were written, those included that are gone.
func (r *Ring) Total() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total
}

// texts returns every text of r.
func (r *Record) texts() []*string {
	return []*string{
		&r.GatewayID, &r.UserID, &r.DeviceID, &r.AgentID, &r.SessionID, &r.UID, &r.AppID, &r.Object, &r.Carrier, &r.FlowID, &r.RequestID,
		&r.Method, &r.Path, &r.Protocol, &r.Suite, &r.Remote, &r.Upstream, &r.PolicyID, &r.Result, &r.Detail,
	}
}

// Tee returns a sink that writes to each of sinks.
func Tee(sinks ...Sink) Sink { return tee(sinks) }

type tee []Sink

func (t tee) Write(r *Record) {
	for _, s := range t {
		s.Write(r)
	}
}
