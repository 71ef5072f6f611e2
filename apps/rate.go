package apps

import (
	"sync/atomic"
	"time"
)

// meter counts requests in slots of ten seconds, for a rate of the last minute.
// A reload keeps it.
type meter struct {
	total atomic.Uint64
	slots [rateSlots + 1]struct{ at, n atomic.Int64 } // one is being filled
}

const (
	rateSlot  = 10 * time.Second
	rateSlots = 6
)

// count counts one request at now. Two that begin a slot together may lose one
// of both from the rate, never from the total.
func (m *meter) count(now time.Time) {
	m.total.Add(1)
	at := now.UnixNano() / int64(rateSlot)
	s := &m.slots[at%int64(len(m.slots))]
	if was := s.at.Load(); was != at && s.at.CompareAndSwap(was, at) {
		s.n.Store(0)
	}
	s.n.Add(1)
}

// perSecond returns the rate of the last whole minute.
func (m *meter) perSecond(now time.Time) float64 {
	at := now.UnixNano() / int64(rateSlot)
	var n int64
	for i := range m.slots {
		if s := &m.slots[i]; s.at.Load() >= at-rateSlots && s.at.Load() < at {
			n += s.n.Load()
		}
	}
	return float64(n) / (rateSlots * rateSlot.Seconds())
}

// Requests returns how many requests were forwarded to the application since the
// start, and how many a second in the last minute.
func (a *App) Requests(now time.Time) (total uint64, perSecond float64) {
	return a.meter.total.Load(), a.meter.perSecond(now)
}
