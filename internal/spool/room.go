package spool

import (
	"path/filepath"
)

// keepCap makes room below the caps for another segment: the oldest segments
// go, first the class's own, then those of the lowest class.
func (l *log) keepCap() {
	l.mu.Lock()
	for l.kept()+l.most > l.cap && l.doom(OverCap) != nil {
	}
	full := l.kept()+l.most > l.cap*4/5
	report := full && !l.filling
	l.filling = full
	l.mu.Unlock()
	if report {
		l.s.cfg.Event(Event{Kind: Filling, Class: l.class})
	}
	for c := NumClasses - 1; l.s.total()+l.most > l.s.cfg.MaxBytes && c >= l.class && c < NumClasses; {
		o := l.s.logs[c]
		o.mu.Lock()
		gone := o.doom(OverCap)
		o.mu.Unlock()
		if gone == nil {
			c--
			continue
		}
		signal(o.wake) // to store the gap
	}
}

// kept returns the bytes of segments that are not going. The caller holds l.mu.
func (l *log) kept() (n int64) {
	for _, s := range l.segs {
		if !s.doomed {
			n += s.size
		}
	}
	return n
}

func (l *log) hasDoomed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segs {
		if s.doomed {
			return true
		}
	}
	return false
}

func (s *Spool) total() (n int64) {
	for _, l := range s.logs {
		l.mu.Lock()
		n += l.kept()
		l.mu.Unlock()
	}
	return n
}

// doom puts the records of the oldest segment into a gap and returns the
// segment, or nil when there is none but the active one. The caller holds l.mu.
func (l *log) doom(why Reason) *segment {
	var seg *segment
	for _, s := range l.segs {
		if !s.doomed && s != l.active {
			seg = s
			break
		}
	}
	if seg == nil {
		return nil
	}
	isGap := map[uint64]bool{}
	for _, g := range seg.gaps {
		if seg.runs.has(g.seq) && !l.done.has(g.seq) {
			isGap[g.seq] = true
			for _, lost := range g.gaps {
				l.carry(lost) // its record goes, the statement stays
			}
		}
	}
	dropped := uint64(0)
	for _, r := range seg.runs {
		for _, p := range l.done.without(r.from, r.to) {
			n := p.to - p.from + 1
			l.waiting -= int(n)
			for seq := range isGap {
				if p.from <= seq && seq <= p.to {
					n--
				}
			}
			dropped += n
			l.lose(p.from, p.to, n, why)
		}
	}
	seg.doomed, seg.wait = true, l.ticket+1
	if len(l.pending) == 0 {
		seg.wait = l.stored // nothing was lost
	}
	if dropped > 0 {
		l.s.cfg.Event(Event{Kind: Dropped, Class: l.class, Count: dropped, Reason: why})
	}
	signal(l.s.poke)
	return seg
}

// makeRoom is called by a class's committer when the disk is full. It reports
// whether there may be room now. Audit and status only wait for better times;
// for alerts and identity the reserve is given up, then segments of status and
// audit; alerts and identity never give way to each other.
func (s *Spool) makeRoom(c Class, cause error) bool {
	s.mu.Lock()
	was := s.tight
	s.tight = true
	release := c.vital() && s.reserved
	if release {
		s.reserved = s.cfg.fs.Remove(s.reserveName()) != nil
		release = !s.reserved
	}
	s.mu.Unlock()
	signal(s.poke)
	if !was {
		s.cfg.Event(Event{Kind: DiskFull, Class: c, Err: cause})
	}
	if release {
		return true
	}
	if !c.vital() {
		return false
	}
	for low := NumClasses - 1; !low.vital(); low-- {
		l := s.logs[low]
		if l.giveWay() {
			signal(l.wake)
			return true
		}
	}
	return false
}

// giveWay removes the oldest segment at once.
func (l *log) giveWay() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	var seg *segment
	for _, s := range l.segs {
		if s.doomed {
			seg = s
			break
		}
	}
	if seg == nil {
		seg = l.doom(GaveWay)
	}
	if seg == nil || l.s.cfg.fs.Remove(seg.name) != nil {
		return false
	}
	l.forget(seg)
	return true
}

func (s *Spool) reserveName() string { return filepath.Join(s.cfg.Dir, "reserve") }

// takeReserve puts the reserve in place, and reports whether the disk has room
// again.
func (s *Spool) takeReserve() bool {
	s.mu.Lock()
	have := s.reserved || s.cfg.Reserve == 0
	s.mu.Unlock()
	if !have {
		s.cfg.fs.Remove(s.reserveName()) // of an earlier process, perhaps of another size
		f, err := s.cfg.fs.Create(s.reserveName())
		if err == nil {
			err = f.Allocate(s.cfg.Reserve)
			if err == nil {
				err = f.Sync()
			}
			f.Close()
		}
		if err != nil {
			s.cfg.fs.Remove(s.reserveName())
		}
		have = err == nil
	}
	s.mu.Lock()
	s.reserved = have && s.cfg.Reserve > 0
	was := s.tight
	s.tight = !have
	s.mu.Unlock()
	if have && was {
		s.cfg.Event(Event{Kind: SpaceBack})
	} else if !have && !was {
		s.cfg.Event(Event{Kind: DiskFull, Class: Status, Err: ErrNoSpace})
	}
	return have
}

// isTight reports whether the disk is full, so that only alerts and identity
// are taken.
func (s *Spool) isTight() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tight
}
