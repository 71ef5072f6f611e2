package policy

import "sync/atomic"

// memo is the last yes to a subject, apart from what hangs on method and path,
// and the question it answered: requests of one connection ask the same again
// and again. It counts for the same snapshot, application, address and protocol
// only, and from the time of that answer until one of its parts must be looked
// at again; so it says what a full decision would say.
//
// It is one cache line. A writer takes it by an odd seq, and whoever comes at
// the same time goes without; so does a reader that met a writer.
type memo struct {
	seq    atomic.Uint64
	key    atomic.Uint64 // see memoKey; 0: nothing is remembered
	hi, lo atomic.Uint64 // of the address
	from   atomic.Int64
	end    atomic.Int64
	asked  atomic.Uint64 // the key of the last question that was answered in full
	_      [8]byte
}

// snapshots numbers the snapshots of the process, from 1.
var snapshots atomic.Uint64

// memoLimited is the bit of a key that says that the answer was Limited.
const memoLimited = 1

// memoKey packs a snapshot's serial in 40 bits, an application in 16, and all
// of a question that is small. It returns 0 for what does not fit.
func memoKey(snapshot uint64, app uint32, q *question) uint64 {
	if snapshot >= 1<<40 || app >= 1<<16 || q.protocol > 7 {
		return 0
	}
	k := snapshot<<24 | uint64(app)<<8 | uint64(q.protocol)<<3
	if q.remoteOK {
		k |= 4
	}
	if q.remoteV4 {
		k |= 2
	}
	return k
}

// find returns the remembered answer to q, whose key is k.
func (m *memo) find(k uint64, q *question) (end int64, limited, ok bool) {
	seq, key := m.seq.Load(), m.key.Load()
	if seq&1 != 0 || key&^memoLimited != k || k == 0 || m.hi.Load() != q.remote.hi || m.lo.Load() != q.remote.lo {
		return 0, false, false
	}
	end = m.end.Load()
	if q.now < m.from.Load() || q.now >= end || m.seq.Load() != seq {
		return 0, false, false
	}
	return end, key&memoLimited != 0, true
}

// put remembers that q was answered with yes until end, when it was asked twice
// in a row: who asks for different things in turn does not pay for writing.
func (m *memo) put(k uint64, q *question, end int64, limited bool) {
	if m.asked.Load() != k {
		m.asked.Store(k)
		return
	}
	seq := m.seq.Load()
	if k == 0 || seq&1 != 0 || !m.seq.CompareAndSwap(seq, seq+1) {
		return
	}
	if limited {
		k |= memoLimited
	}
	m.key.Store(k)
	m.hi.Store(q.remote.hi)
	m.lo.Store(q.remote.lo)
	m.from.Store(q.now)
	m.end.Store(end)
	m.seq.Store(seq + 2)
}
