package access

import (
	"container/heap"
	"math"
	"sync"
	"time"
)

// noDue is the time of what need not be looked at again.
const noDue int64 = math.MaxInt64

func dueAt(t time.Time) int64 {
	if t.IsZero() {
		return noDue
	}
	return t.UnixNano()
}

// schedule holds the sessions in the order in which the monitor must look at
// them: one entry a session, at the earliest time of its leases. A request
// touches it only when it brings a session forward.
type schedule struct {
	wake chan struct{} // capacity 1: the head has changed
	mu   sync.Mutex
	heap dueHeap // guarded by mu
}

// lower brings s forward to at.
func (q *schedule) lower(s *Session, at int64) {
	for {
		old := s.dueAt.Load()
		if at >= old {
			return
		}
		if s.dueAt.CompareAndSwap(old, at) {
			break
		}
	}
	q.place(s)
}

// place puts s where its dueAt says.
func (q *schedule) place(s *Session) {
	q.mu.Lock()
	at := s.dueAt.Load()
	switch {
	case s.gone:
	case s.pos >= 0 && at == noDue:
		heap.Remove(&q.heap, s.pos)
	case s.pos >= 0:
		q.heap[s.pos].at = at
		heap.Fix(&q.heap, s.pos)
	case at != noDue:
		heap.Push(&q.heap, dueEntry{at, s})
	}
	head := s.pos == 0
	q.mu.Unlock()
	if head {
		q.poke()
	}
}

func (q *schedule) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// remove takes s out for good.
func (q *schedule) remove(s *Session) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s.gone = true
	if s.pos >= 0 {
		heap.Remove(&q.heap, s.pos)
	}
}

// pop takes out a session that is due at now, or returns nil and when the next
// one is.
func (q *schedule) pop(now int64) (s *Session, next int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.heap) == 0 {
		return nil, noDue
	}
	if e := q.heap[0]; e.at > now {
		return nil, e.at
	}
	return heap.Pop(&q.heap).(dueEntry).s, 0
}

type dueEntry struct {
	at int64
	s  *Session
}

type dueHeap []dueEntry

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].s.pos, h[j].s.pos = i, j
}

func (h *dueHeap) Push(x any) {
	e := x.(dueEntry)
	e.s.pos = len(*h)
	*h = append(*h, e)
}

func (h *dueHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = dueEntry{}
	*h = old[:len(old)-1]
	e.s.pos = -1
	return e
}
