package spool

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"
)

// zeroAhead is how many zeros are written behind the frames when the file must
// grow, so that most syncs find its size and its blocks unchanged.
const zeroAhead = 256 << 10

// maxWrite bounds one write.
const maxWrite = 2 << 20

// commitLoop stores batches until the spool closes.
func (l *log) commitLoop() {
	for last := false; ; {
		for b := l.take(); b != nil; b = l.take() {
			l.commit(b)
		}
		if last {
			l.finish()
			return
		}
		select {
		case <-l.wake:
		case <-l.s.closing:
			last = true // once more: what came before refuseNew
		}
	}
}

// commit stores one batch and tells its appenders.
func (l *log) commit(b *batch) {
	l.mu.Lock()
	l.unsynced = append(l.unsynced, b.items...)
	for _, it := range b.items {
		l.inflight += len(it.payload)
	}
	l.mu.Unlock()
	err := l.store()
	l.mu.Lock()
	if l.blocked = err != nil; err != nil {
		b.err, b.upTo = err, l.abandonItems(b.items)
	}
	l.mu.Unlock()
	close(b.done)
	if err != nil {
		signal(l.s.poke) // the keeper lets us try again
	}
	if err != nil {
		return
	}
	going := l.hasDoomed()
	if l.class.lazy() {
		if signal(l.dirty); going || l.overdue() {
			l.sync() // a failure is seen by the next take
		}
	}
	if going {
		l.sweep() // at once: the cap counts
	}
}

// store writes what is not written, and syncs unless the class is lazy. When
// the disk refuses, the segment is left for good, and all that was not synced
// goes to another one, under another key.
func (l *log) store() error {
	err := error(nil)
	if l.hasFailed() {
		err = errors.New("sync segment: it failed before")
	} else if err = l.write(); err == nil {
		if l.class.lazy() {
			return nil
		}
		if err = l.sync(); err == nil {
			return nil
		}
	}
	for try := range 6 {
		l.s.fault(l.class, err)
		l.leave()
		if noSpace(err) {
			if !l.s.makeRoom(l.class, err) {
				break
			}
		} else if try > 2 {
			break
		}
		if err = l.write(); err == nil {
			if err = l.sync(); err == nil {
				return nil
			}
		}
	}
	l.leave()
	if noSpace(err) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return fmt.Errorf("append record: %w", err)
}

func (l *log) hasFailed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// overdue reports whether a lazy class holds too much that is not synced.
func (l *log) overdue() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inflight > 4*l.s.cfg.WindowBytes
}

// abandonItems gives up what could not be stored of a batch and returns the
// number up to which it was. What earlier appenders were promised stays in
// memory and is tried again. The caller holds l.mu.
func (l *log) abandonItems(items []item) (upTo uint64) {
	if len(items) == 0 {
		return l.synced
	}
	first := items[0].seq
	keep := l.unsynced[:0:0]
	for _, it := range l.unsynced {
		if it.seq < first {
			keep = append(keep, it)
			continue
		}
		l.inflight -= len(it.payload)
		if it.kind == kindGaps {
			l.pending = append(append([]Gap(nil), it.gaps...), l.pending...)
			l.lose(it.seq, it.seq, 0, Refused) // its number, no record
			for _, s := range l.segs {
				if s.doomed && s.wait > l.stored {
					s.wait = l.ticket + 1
				}
			}
			continue
		}
		l.lose(it.seq, it.seq, 1, Refused)
	}
	l.unsynced = keep
	upTo = l.synced
	if len(keep) == 0 {
		l.synced = items[len(items)-1].seq
	}
	return upTo
}

// write writes the items that are in no segment yet, into as many segments as
// they need.
func (l *log) write() error {
	for {
		if l.active == nil {
			if l.nothing() {
				return nil
			}
			if err := l.create(); err != nil {
				return err
			}
		}
		l.mu.Lock()
		todo := l.unsynced[l.written:]
		at, chain := l.active.end, l.chain
		room := max(l.most, l.active.size) - at - (frameSize + endSize + tagSize)
		l.mu.Unlock()
		if len(todo) == 0 {
			return nil
		}
		places, size := l.lay(todo, at, room)
		if len(places) == 0 {
			if err := l.seal(); err != nil {
				return err
			}
			continue
		}
		l.sealAll(todo, places, size)
		for _, p := range places {
			chain = chainNext(chain, l.buf[p.from:p.to])
		}
		grown, err := l.put(l.buf, at)
		if err != nil {
			return err
		}
		l.mu.Lock()
		for i, p := range places {
			l.active.note(todo[i].kind, todo[i].seq, at+int64(p.from), at+int64(p.to))
			if todo[i].kind == kindGaps {
				l.active.gaps = append(l.active.gaps, gapFrame{todo[i].seq, todo[i].gaps})
			}
		}
		l.written += len(places)
		l.chain = chain
		l.active.size = max(l.active.size, grown)
		l.mu.Unlock()
	}
}

// place is where a frame lies in what is written at once.
type place struct{ from, to int }

// lay chooses the items that go into one write at offset at of the active
// segment, which has room for so many bytes; a segment takes at least one.
func (l *log) lay(todo []item, at, room int64) (places []place, size int) {
	places = l.places[:0]
	for _, it := range todo {
		to := size + frameSize + len(it.payload) + tagSize
		if (at > headerSize || size > 0) && int64(to) > room || size > 0 && to > maxWrite {
			break
		}
		places = append(places, place{size, to})
		size = to
	}
	l.places = places
	return places, size
}

// sealAll makes the frames in l.buf.
func (l *log) sealAll(todo []item, places []place, size int) {
	if cap(l.buf) < size {
		l.buf = make([]byte, size, size+zeroAhead)
	}
	l.buf = l.buf[:size]
	for i, p := range places {
		it := &todo[i]
		appendFrame(l.buf[p.from:p.from:p.to], l.active.aead, l.class, it.kind, it.seq, it.at, it.payload)
	}
}

func (l *log) nothing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.unsynced) == 0
}

// put writes frames at off, with zeros behind them when the file must grow, and
// returns the file's size. A disk that has no room for the zeros is no failure.
func (l *log) put(frames []byte, off int64) (size int64, err error) {
	end := off + int64(len(frames))
	if end > l.active.size && !l.class.lazy() {
		grown := min((end+zeroAhead-1)/zeroAhead*zeroAhead, max(end, l.most))
		n := len(frames)
		l.buf = slices.Grow(frames, int(grown-end))[:n+int(grown-end)]
		clear(l.buf[n:])
	}
	n, err := l.f.WriteAt(l.buf, off)
	if err != nil && n < len(frames) {
		return 0, fmt.Errorf("write segment: %w", err)
	}
	return off + int64(n), nil
}

// sync makes what is written last, and visible to Next.
func (l *log) sync() error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	return l.syncHeld()
}

// syncHeld is sync for a caller that holds l.syncing.
func (l *log) syncHeld() error {
	l.mu.Lock()
	f, seg, n, chain := l.f, l.active, l.written, l.chain
	if f == nil || n == 0 || l.failed {
		l.mu.Unlock()
		return nil
	}
	end, last := seg.end, l.unsynced[n-1].seq
	l.mu.Unlock()
	err := f.Sync()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Syncs++
	if err != nil {
		l.failed = true
		return fmt.Errorf("sync segment: %w", err)
	}
	l.stable, l.end = chain, end
	for _, it := range l.unsynced[:n] {
		l.inflight -= len(it.payload)
		l.stored = max(l.stored, it.ticket)
		if it.kind == kindRecord {
			l.stats.Appended++
		}
	}
	l.waiting += n
	l.unsynced = l.unsynced[n:]
	l.written -= n
	l.synced = last
	if len(l.unsynced) == 0 {
		l.unsynced = nil
	}
	l.unsaved = true
	signal(l.s.poke)
	return nil
}

// create begins a new segment for everything that is not synced.
func (l *log) create() error {
	l.keepCap()
	if err := l.findChain(); err != nil {
		return err
	}
	l.mu.Lock()
	l.ordinal++
	h := header{class: l.class, ordinal: l.ordinal, first: l.synced + 1, made: l.s.cfg.Now().UnixNano(), prev: l.stable}
	l.mu.Unlock()
	if _, err := io.ReadFull(rand.Reader, h.salt[:]); err != nil {
		return fmt.Errorf("make segment: %w", err)
	}
	aead, err := l.s.keys.segment(&h)
	if err != nil {
		return err
	}
	name := filepath.Join(l.dir, h.name())
	f, err := l.s.cfg.fs.Create(name)
	if err == nil {
		if _, err = f.WriteAt(h.encode(&l.s.keys), 0); err == nil {
			err = l.s.cfg.fs.SyncDir(l.dir)
		}
		if err != nil {
			f.Close()
			l.s.cfg.fs.Remove(name)
		}
	}
	if err != nil {
		return fmt.Errorf("make segment: %w", err)
	}
	seg := &segment{header: h, name: name, aead: aead, size: headerSize, end: headerSize, last: h.first - 1}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segs {
		s.runs.cut(h.first, ^uint64(0)) // never synced: they come again here
	}
	l.segs = append(l.segs, seg)
	l.active, l.f, l.failed, l.written = seg, f, false, 0
	l.chain, l.end = h.chainStart(), headerSize
	return nil
}

// findChain computes the chain value of an earlier process's last segment.
func (l *log) findChain() error {
	l.mu.Lock()
	var last *segment
	if n := len(l.segs); n > 0 && !l.chained {
		last = l.segs[n-1]
	}
	l.chained = true
	l.mu.Unlock()
	if last == nil {
		return nil
	}
	f, err := l.s.cfg.fs.Open(last.name)
	if err != nil {
		return nil // Prove will say that the chain is broken here
	}
	defer f.Close()
	if chain, err := last.chainOf(f, l.mostSealed()); err == nil {
		l.stable = chain
	}
	return nil
}

// mostSealed is the longest sealed payload that a frame may have.
func (l *log) mostSealed() int { return max(l.s.cfg.MaxRecord, 512*gapSize, endSize) + tagSize }

// seal ends the active segment: everything in it is synced, and its end frame
// says how much it holds.
func (l *log) seal() error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.mu.Lock()
	seg, f, failed, chain := l.active, l.f, l.failed, l.chain
	l.mu.Unlock()
	if failed {
		return errors.New("end segment: its last sync failed")
	}
	payload := append(be.AppendUint64(nil, uint64(seg.count)), chain[:]...)
	end := appendFrame(nil, seg.aead, l.class, kindEnd, seg.last, l.s.cfg.Now().UnixNano(), payload)
	if _, err := f.WriteAt(end, seg.end); err != nil {
		return fmt.Errorf("end segment: %w", err)
	}
	size := seg.end + int64(len(end))
	f.Truncate(size) // a longer file with zeros is as good
	if err := l.syncHeld(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil { // the end frame, when all else was synced before
		l.mu.Lock()
		l.failed = true
		l.mu.Unlock()
		return fmt.Errorf("end segment: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	seg.end, seg.size, seg.ended = size, size, true
	l.stable = chainNext(chain, end)
	l.active, l.f = nil, nil
	f.Close()
	return nil
}

// leave closes the active segment for good after a failure. Its synced frames
// stay; the others are cut off, as far as the disk lets us.
func (l *log) leave() {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.mu.Lock()
	seg, f, end := l.active, l.f, l.end
	l.active, l.f, l.failed, l.written = nil, nil, false, 0
	l.mu.Unlock()
	if f == nil {
		return
	}
	if f.Truncate(end) == nil {
		f.Sync()
	}
	f.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	seg.runs.cut(l.synced+1, ^uint64(0))
	seg.end, seg.size = end, end
	seg.last = l.synced
	if len(seg.runs) == 0 {
		l.forget(seg)
		l.s.cfg.fs.Remove(seg.name)
	}
}

// forget takes a segment out of the list. The caller holds l.mu.
func (l *log) forget(seg *segment) {
	for i, s := range l.segs {
		if s == seg {
			l.segs = append(l.segs[:i:i], l.segs[i+1:]...)
			return
		}
	}
}

// finish ends the active segment when the spool closes.
func (l *log) finish() {
	if l.store() == nil && l.sync() != nil {
		l.store()
	}
	if l.active != nil && l.seal() != nil {
		l.leave()
	}
}

// syncLoop syncs a lazy class within its window.
func (l *log) syncLoop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-l.s.closing:
			return // the committer syncs when it finishes
		case <-l.dirty:
		}
		timer.Reset(l.s.cfg.Window)
		for waiting := true; waiting; {
			l.mu.Lock()
			waiting = l.inflight < l.s.cfg.WindowBytes
			l.mu.Unlock()
			if !waiting {
				break
			}
			select {
			case <-l.s.closing:
				return
			case <-l.dirty:
			case <-timer.C:
				waiting = false
			}
		}
		if err := l.sync(); err != nil {
			signal(l.wake) // the committer changes the segment
		}
	}
}
