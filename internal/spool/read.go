package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// want is what a reader takes from one segment.
type want struct {
	seg      *segment
	off      int64 // where to begin, and the number before
	last     uint64
	limit    int64
	from, to uint64 // numbers to be seen; settled ones between are passed over
	skip     spans  // settled
}

// plan returns the segments that hold the next n records after after.
func (l *log) plan(after uint64, n int) []want {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []want
	for _, s := range l.segs {
		if s.doomed || n <= 0 || s.last <= after {
			continue
		}
		w := want{seg: s, limit: s.end}
		for _, r := range s.runs {
			if r.to <= after || r.from > l.synced {
				continue
			}
			for _, p := range l.done.without(max(r.from, after+1), min(r.to, l.synced)) {
				if n <= 0 {
					break
				}
				p.to = min(p.to, p.from+uint64(n)-1)
				n -= int(p.to - p.from + 1)
				if w.from == 0 {
					w.from = p.from
				}
				w.to = p.to
			}
		}
		if w.from > 0 {
			w.off, w.last = s.seek(w.from)
			if i := l.done.find(w.from); i < len(l.done) {
				for ; i < len(l.done) && l.done[i].from <= w.to; i++ {
					w.skip = append(w.skip, l.done[i])
				}
			}
			out = append(out, w)
		}
	}
	return out
}

// nextRecords is Next of the class. Records whose bytes are bad become a gap.
func (l *log) nextRecords(after uint64, n int) (out []Record, err error) {
	bytes := 0
	for tries := 0; len(out) < n && tries < 100; tries++ {
		wants := l.plan(after, n-len(out))
		if len(wants) == 0 {
			return out, nil
		}
		for _, w := range wants {
			got, bad, err := l.read(&w)
			if errors.Is(err, fs.ErrNotExist) {
				break // removed meanwhile: plan again
			}
			if err != nil {
				return out, fmt.Errorf("read records: %w", err)
			}
			for _, p := range bad {
				l.damage(w.seg, p)
			}
			for _, r := range got {
				if bytes += len(r.Payload); len(out) > 0 && bytes > l.s.cfg.MaxRecord {
					return out, nil
				}
				out = append(out, r)
				after = r.Seq
			}
			after = max(after, w.to)
		}
	}
	return out, nil
}

// read returns the records that w asks for, and the numbers that should have
// been there and are not. When it has read enough bytes it ends, and so does w.
func (l *log) read(w *want) (out []Record, bad spans, err error) {
	f, err := l.s.cfg.fs.Open(w.seg.name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	sc := w.seg.scan(f, l.mostSealed(), w.off, w.last, w.limit)
	seen := append(spans(nil), w.skip...)
	size := 0
	for {
		fr, err := sc.next()
		if err != nil {
			return nil, nil, err
		}
		if fr == nil || fr.seq > w.to {
			break
		}
		if fr.kind == kindEnd || fr.seq < w.from || w.skip.has(fr.seq) {
			continue
		}
		p, err := fr.open(w.seg.aead)
		if err != nil {
			continue
		}
		r := Record{Seq: fr.seq, At: time.Unix(0, fr.at), Payload: p}
		if fr.kind == kindGaps {
			if r.Gaps, err = parseGaps(p); err != nil {
				continue
			}
			r.Payload = nil
		}
		seen.add(fr.seq, fr.seq)
		out = append(out, r)
		if size += len(p); size > l.s.cfg.MaxRecord {
			w.to = fr.seq
		}
		if fr.seq >= w.to {
			break
		}
	}
	return out, seen.without(w.from, w.to), nil
}

// damage puts records of a segment that were there at opening into a gap.
func (l *log) damage(seg *segment, p span) {
	l.mu.Lock()
	lost := uint64(0)
	for _, r := range seg.runs {
		for _, q := range l.done.without(max(r.from, p.from), min(r.to, p.to)) {
			n := q.to - q.from + 1
			lost += n
			l.waiting -= int(n)
			l.lose(q.from, q.to, n, Damaged)
		}
	}
	l.mu.Unlock()
	if lost > 0 {
		signal(l.wake)
		l.s.corrupt(l.class, seg.name)
		l.s.cfg.Event(Event{Kind: Dropped, Class: l.class, Count: lost, Reason: Damaged})
	}
}

// oldestPending returns when the oldest pending record was appended.
func (l *log) oldestPending() time.Time {
	wants := l.plan(0, 1)
	if len(wants) == 0 {
		return time.Time{}
	}
	w := wants[0]
	l.mu.Lock()
	o := l.oldest
	l.mu.Unlock()
	if o.seq == w.from {
		return o.at
	}
	got, _, err := l.read(&w)
	if err != nil || len(got) == 0 {
		return time.Time{}
	}
	l.mu.Lock()
	l.oldest = oldest{w.from, got[0].At}
	l.mu.Unlock()
	return got[0].At
}
