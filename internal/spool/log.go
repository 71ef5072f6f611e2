package spool

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/emmansun/gmsm/sm3"
)

// log is one class: its segments, what waits in them, and the batch that is
// being filled.
type log struct {
	s     *Spool
	class Class
	dir   string
	cap   int64
	most  int64         // bytes of a segment
	wake  chan struct{} // capacity 1; something for the committer
	dirty chan struct{} // capacity 1; something for the syncer
	full  chan struct{} // capacity 1; the syncer need not wait for the window

	mu      sync.Mutex
	closed  bool          // guarded by mu, like all that follows
	next    uint64        // sequence number of the next record
	open    *batch        // being filled; nil: none
	room    chan struct{} // closed when open is taken
	segs    []*segment    // oldest first
	done    spans         // settled: acknowledged or lost
	saved   spans         // what the cursor on disk says of done
	unsaved bool          // the cursor on disk is behind
	waiting int           // records that are neither settled nor in flight
	synced  uint64        // records up to here are on disk, or never will be
	pending []Gap         // to be stored
	known   []Gap         // every gap that Prove names, stored or not
	ticket  uint64        // how often pending was emptied into a frame
	stored  uint64        // the frames up to this ticket are on disk
	blocked bool          // the disk refused: gaps wait for the keeper
	filling bool          // 80 % of the cap were reported
	stats   ClassStats
	oldest  oldest

	// The segment being written. Only the committer changes them, under mu.
	active   *segment
	f        file
	chain    [sm3.Size]byte // after the last frame written
	stable   [sm3.Size]byte // after the last frame synced
	end      int64          // of the last frame synced
	ordinal  uint64         // of the newest segment
	chained  bool           // stable is that of the newest segment
	unsynced []item         // written or not, and not yet synced; oldest first
	written  int            // how many of unsynced are in the active segment
	inflight int            // payload bytes of unsynced
	failed   bool           // the last sync of the active segment failed

	syncing sync.Mutex // held while f is synced or closed
	buf     []byte     // the committer's
	places  []place    // the committer's
}

// item is one frame to be.
type item struct {
	kind    byte
	seq     uint64
	at      int64
	payload []byte
	gaps    []Gap // of a gaps frame
	ticket  uint64
}

// batch is what one commit stores. Its fields are guarded by the log's mutex
// until the committer takes it.
type batch struct {
	items []item
	buf   []byte // the payloads
	done  chan struct{}
	err   error  // set before done is closed
	upTo  uint64 // records up to here were stored even so
}

// batchBytes bounds what waits for a commit; more waits outside.
const batchBytes = 4 << 20

func newLog(s *Spool, c Class) *log {
	l := &log{
		s: s, class: c, dir: filepath.Join(s.cfg.Dir, c.String()), cap: s.cfg.Caps[c],
		most: max(min(s.cfg.SegmentBytes, s.cfg.Caps[c]/8), 4<<10),
		wake: make(chan struct{}, 1), dirty: make(chan struct{}, 1), full: make(chan struct{}, 1), room: make(chan struct{}),
	}
	return l
}

// append is Append of the class.
func (l *log) append(ctx context.Context, payload []byte) (uint64, error) {
	if len(payload) > l.s.cfg.MaxRecord || int64(len(payload)) > l.cap/4 {
		return 0, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(payload))
	}
	at := l.s.cfg.Now().UnixNano()
	tight := !l.class.vital() && l.s.isTight()
	l.mu.Lock()
	for !l.closed && l.open != nil && len(l.open.buf)+len(payload) > batchBytes {
		room := l.room
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-room:
		}
		l.mu.Lock()
	}
	if l.closed {
		l.mu.Unlock()
		return 0, ErrClosed
	}
	seq := l.next
	l.next++
	if tight {
		l.lose(seq, seq, 1, Refused)
		l.mu.Unlock()
		return 0, ErrNoSpace
	}
	b := l.open
	if b == nil {
		b = &batch{done: make(chan struct{})}
		l.open = b
		signal(l.wake)
	}
	n := len(b.buf)
	b.buf = append(b.buf, payload...) // when it grows, earlier items keep the old array
	b.items = append(b.items, item{kind: kindRecord, seq: seq, at: at, payload: b.buf[n:len(b.buf):len(b.buf)]})
	l.mu.Unlock()

	select {
	case <-b.done:
	case <-ctx.Done():
		return seq, ctx.Err()
	}
	if b.err != nil && seq > b.upTo {
		return 0, b.err
	}
	return seq, nil
}

// refuseNew makes every later append fail.
func (l *log) refuseNew() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
}

// take returns the batch to commit next, with the gaps that wait to be stored,
// or nil if there is nothing to do.
func (l *log) take() *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.open
	if b != nil {
		l.open = nil
		close(l.room)
		l.room = make(chan struct{})
	}
	if len(l.pending) > 0 && !l.blocked {
		if b == nil {
			b = &batch{done: make(chan struct{})}
		}
		gaps := l.pending[:min(len(l.pending), 512)]
		l.pending = append([]Gap(nil), l.pending[len(gaps):]...)
		at := l.s.cfg.Now().UnixNano()
		if len(l.pending) == 0 {
			l.ticket++ // what is dropped from now on is in a later frame
		}
		b.items = append(b.items, item{kind: kindGaps, seq: l.next, at: at, payload: appendGaps(nil, gaps), gaps: gaps, ticket: l.ticket})
		l.next++
	}
	if b == nil && (l.failed || l.active == nil && len(l.unsynced) > 0 && !l.blocked) {
		b = &batch{done: make(chan struct{})} // what was promised needs another segment
	}
	return b
}

// lose settles from to to, of which count records are lost, and lets the next
// commit say so. The caller holds l.mu.
func (l *log) lose(from, to, count uint64, why Reason) {
	l.done.add(from, to)
	l.unsaved = true
	l.stats.Dropped += count
	l.stats.DroppedFor[why] += count
	l.addPending(Gap{From: from, To: to, Count: count, Reason: why, At: l.s.cfg.Now()})
}

// addPending names a new gap. The caller holds l.mu.
func (l *log) addPending(g Gap) {
	l.known = addGap(l.known, g)
	l.carry(g)
}

// carry adds g to what is to be stored, if it can to the gap before: what lies
// between must be settled. The caller holds l.mu.
func (l *log) carry(g Gap) {
	if n := len(l.pending); n > 0 {
		if p := &l.pending[n-1]; p.Reason == g.Reason && p.To < g.From && len(l.done.without(p.To+1, g.From-1)) == 0 {
			p.To, p.Count, p.At = g.To, p.Count+g.Count, g.At
			return
		}
	}
	l.pending = append(l.pending, g)
}

// knownGaps bounds what Prove names; older neighbours become one.
const knownGaps = 1024

// addGap adds g to list in order of From.
func addGap(list []Gap, g Gap) []Gap {
	i := len(list)
	for i > 0 && list[i-1].From > g.From {
		i--
	}
	if i > 0 && list[i-1].From <= g.From && list[i-1].To >= g.To {
		return list // named already
	}
	if i > 0 && list[i-1].To+1 == g.From && list[i-1].Reason == g.Reason {
		p := &list[i-1]
		p.To, p.Count, p.At = g.To, p.Count+g.Count, g.At
		return list
	}
	list = append(list, Gap{})
	copy(list[i+1:], list[i:])
	list[i] = g
	if len(list) > knownGaps {
		a, b := list[0], list[1]
		list = list[1:]
		list[0] = Gap{From: a.From, To: max(a.To, b.To), Count: a.Count + b.Count, Reason: Several, At: b.At}
		if a.Reason == b.Reason {
			list[0].Reason = a.Reason
		}
	}
	return list
}

// has reports whether the record is on disk. The caller holds l.mu.
func (l *log) has(seq uint64) bool {
	if seq > l.synced {
		return false
	}
	for _, s := range l.segs {
		if !s.doomed && s.runs.has(seq) {
			return true
		}
	}
	return false
}

// ack settles records and reports whether any was new.
func (l *log) ack(seqs []uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, seq := range seqs {
		if l.done.has(seq) || !l.has(seq) {
			continue
		}
		l.done.add(seq, seq)
		n++
	}
	l.stats.Acked += uint64(n)
	l.waiting -= n
	l.unsaved = l.unsaved || n > 0
	return n > 0
}

// size returns the bytes on disk. The caller holds l.mu.
func (l *log) size() (n int64) {
	for _, s := range l.segs {
		n += s.size
	}
	return n
}

func (l *log) statistics() ClassStats {
	at := l.oldestPending()
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.stats
	st.Pending, st.Bytes, st.Segments, st.LastSeq, st.Oldest = l.waiting, l.size(), len(l.segs), l.next-1, at
	return st
}

// oldest remembers the time of the oldest pending record.
type oldest struct {
	seq uint64
	at  time.Time
}
