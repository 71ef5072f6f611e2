package spool

import (
	"cmp"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// load reads the class's folder. Only a folder that can not be made or listed
// is an error.
func (l *log) load() error {
	if err := l.s.cfg.fs.MkdirAll(l.dir); err != nil {
		return err
	}
	names, err := l.s.cfg.fs.List(l.dir)
	if err != nil {
		return err
	}
	var heads []header
	for _, name := range names {
		h, ok := parseName(l.class, name)
		if ok {
			heads = append(heads, h)
		} else if strings.HasSuffix(name, ".seg") {
			l.s.corrupt(l.class, name)
		}
	}
	slices.SortFunc(heads, func(a, b header) int { return cmp.Compare(a.ordinal, b.ordinal) })
	holes := l.loadSegments(heads)
	cur, err := l.readCursor()
	if err != nil {
		l.s.corrupt(l.class, "cursor")
	}
	l.rebuild(cur, holes)
	return nil
}

// loadSegments reads the segments, some at a time, and returns the holes that
// are damage. The torn tail of the newest is counted apart.
func (l *log) loadSegments(heads []header) (holes map[*segment][]hole) {
	segs := make([]*segment, len(heads))
	found := make([][]hole, len(heads))
	work := make(chan int)
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 4, len(heads)) {
		wg.Go(func() {
			for i := range work {
				segs[i], found[i] = l.loadOne(heads[i])
			}
		})
	}
	for i := range heads {
		work <- i
	}
	close(work)
	wg.Wait()

	holes = map[*segment][]hole{}
	for i, s := range segs {
		if s == nil {
			continue
		}
		l.ordinal = max(l.ordinal, s.ordinal)
		newest := i == len(segs)-1
		// One without a record where the next one begins, too, or that is the newest,
		// died while it was made: it never held anything.
		if s.headerErr != nil && s.count == 0 && (newest || nextFirst(segs[i+1:]) == s.first) {
			l.s.cfg.fs.Remove(s.name)
			continue
		}
		l.segs = append(l.segs, s)
		if s.headerErr != nil {
			l.s.corrupt(l.class, s.name)
		}
		for _, h := range found[i] {
			if h.tail && !s.ended {
				if newest {
					l.s.mu.Lock()
					l.s.torn += int(h.to - h.from)
					l.s.mu.Unlock()
					l.s.cfg.Event(Event{Kind: TornTail, Class: l.class, Count: uint64(h.to - h.from), File: h.file})
				}
				continue
			}
			holes[s] = append(holes[s], h)
			l.s.corrupt(l.class, h.file)
		}
	}
	return holes
}

// nextFirst returns the first number of the next segment that was read, 0 when
// there is none.
func nextFirst(later []*segment) uint64 {
	for _, s := range later {
		if s != nil {
			return s.first
		}
	}
	return 0
}

// loadOne reads one segment. One that can not be read at all is put aside.
func (l *log) loadOne(h header) (*segment, []hole) {
	name := l.dir + "/" + h.name()
	f, err := l.s.cfg.fs.Open(name)
	if err == nil {
		defer f.Close()
		var s *segment
		var holes []hole
		if s, holes, err = load(&l.s.keys, h, name, f, l.mostSealed()); err == nil {
			return s, holes
		}
	}
	l.s.corrupt(l.class, name)
	l.s.cfg.fs.Rename(name, name+".bad")
	return nil, nil
}

// rebuild computes what is settled, what waits and what is missing.
func (l *log) rebuild(cur *cursor, holes map[*segment][]hole) {
	// 1 A later segment voids what an earlier one has from its first number on.
	void := ^uint64(0)
	for i := len(l.segs) - 1; i >= 0; i-- {
		s := l.segs[i]
		s.runs.cut(void, ^uint64(0))
		s.gaps = slices.DeleteFunc(s.gaps, func(g gapFrame) bool { return !s.runs.has(g.seq) })
		void = min(void, s.first)
	}
	// 2 The next number is above everything that was ever on disk.
	l.next = 1
	var named []Gap
	for _, s := range l.segs {
		l.next = max(l.next, s.first)
		if n := len(s.runs); n > 0 {
			l.next = max(l.next, s.runs[n-1].to+1)
		}
		for _, g := range s.gaps {
			named = append(named, g.gaps...)
		}
	}
	low := l.next // where a missing record would be noticed
	if len(l.segs) > 0 {
		low = l.segs[0].first
	}
	if cur != nil {
		l.next = max(l.next, cur.next)
		l.done = cur.done
		low = 1
	} else {
		l.done.add(1, low-1)
	}
	// 3 What gaps name is settled; each is known once.
	for _, g := range named {
		l.done.add(g.From, g.To)
		l.next = max(l.next, g.To+1)
	}
	if cur != nil {
		named = append(named, cur.gaps...)
	}
	l.known = apart(named)
	l.done.cut(l.next, ^uint64(0))
	l.synced = l.next - 1
	// 4 What is here and not settled waits; what is neither is a gap.
	all := append(spans(nil), l.done...)
	for _, s := range l.segs {
		for _, r := range s.runs {
			for _, p := range l.done.without(r.from, r.to) {
				l.waiting += int(p.to - p.from + 1)
			}
			all.add(r.from, r.to)
		}
	}
	for _, p := range all.without(low, l.next-1) {
		why := Missing
		for s := range holes {
			if p.to >= s.first && p.from <= s.last+1 {
				why = Damaged
			}
		}
		n := p.to - p.from + 1
		l.lose(p.from, p.to, n, why)
		l.s.cfg.Event(Event{Kind: Dropped, Class: l.class, Count: n, Reason: why})
	}
	l.unsaved = l.unsaved || cur == nil && l.next > 1
}

// apart returns the gaps that do not overlap a wider one, in order.
func apart(gaps []Gap) (out []Gap) {
	slices.SortStableFunc(gaps, func(a, b Gap) int { return cmp.Compare(b.To-b.From, a.To-a.From) })
	var seen spans
	for _, g := range gaps {
		if len(seen.without(g.From, g.To)) > 0 && !overlaps(seen, g) {
			seen.add(g.From, g.To)
			out = addGap(out, g)
		}
	}
	return out
}

func overlaps(s spans, g Gap) bool {
	i := s.find(g.From)
	return i < len(s) && s[i].from <= g.To
}
