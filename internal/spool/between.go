package spool

// Stretch is numbers that [Spool.Next] does not give: a gap, or settled ones.
type Stretch struct {
	From, To uint64
	Gap      *Gap // what is lost in it; nil: settled without a loss
}

// Between explains the numbers from to to, none of which Next gives.
func (s *Spool) Between(c Class, from, to uint64) ([]Stretch, error) {
	l, err := s.log(c)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Stretch
	for _, g := range l.known {
		if g.To < from {
			continue
		}
		if from > to || g.From > to {
			break
		}
		if g.From > from {
			out = append(out, Stretch{From: from, To: g.From - 1})
			from = g.From
		}
		part := g
		part.From, part.To = from, min(g.To, to)
		part.Count = min(g.Count, part.To-part.From+1)
		out = append(out, Stretch{From: part.From, To: part.To, Gap: &part})
		from = part.To + 1
	}
	if from <= to {
		out = append(out, Stretch{From: from, To: to})
	}
	return out, nil
}

// Last returns the highest number of the class that is on disk, or that never
// will be.
func (s *Spool) Last(c Class) uint64 {
	l, err := s.log(c)
	if err != nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.synced
}

// AckTo forgets every record of the class up to and including upTo, as Ack
// does.
func (s *Spool) AckTo(c Class, upTo uint64) error {
	l, err := s.log(c)
	if err != nil {
		return err
	}
	if l.ackTo(upTo) {
		signal(s.poke)
	}
	return nil
}

func (l *log) ackTo(upTo uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, s := range l.segs {
		if s.doomed || s.first > upTo {
			continue
		}
		for _, r := range s.runs {
			for _, p := range l.done.without(r.from, min(r.to, upTo, l.synced)) {
				n += int(p.to - p.from + 1)
				l.done.add(p.from, p.to)
			}
		}
	}
	l.stats.Acked += uint64(n)
	l.waiting -= n
	l.unsaved = l.unsaved || n > 0
	return n > 0
}

// Drop puts a record that waits into a gap: nobody will ever take it.
func (s *Spool) Drop(c Class, seq uint64, why Reason) error {
	l, err := s.log(c)
	if err != nil {
		return err
	}
	l.mu.Lock()
	lost := seq <= l.synced && !l.done.has(seq) && l.has(seq)
	if lost {
		l.lose(seq, seq, 1, why)
		l.waiting--
	}
	l.mu.Unlock()
	if lost {
		signal(l.wake) // to store the gap
		signal(s.poke)
		s.cfg.Event(Event{Kind: Dropped, Class: c, Count: 1, Reason: why})
	}
	return nil
}

// Unsynced reports whether records of the class are on their way to the disk,
// so that Next may soon give more.
func (s *Spool) Unsynced(c Class) bool {
	l, err := s.log(c)
	if err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open != nil || len(l.unsynced) > 0
}

// Split counts, of the numbers from to to beyond covered, those that are settled
// and in no gap, and those that wait.
func (s *Spool) Split(c Class, from, to, covered uint64) (settled, waiting uint64, err error) {
	l, err := s.log(c)
	if err != nil {
		return 0, 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	from, to = max(from, covered+1), min(to, l.synced)
	if from > to {
		return 0, 0, nil
	}
	var lost spans
	for _, g := range l.known {
		if g.To >= from && g.From <= to {
			lost.add(max(g.From, from), min(g.To, to))
		}
	}
	open := spans(l.done.without(from, to))
	waiting = open.count()
	both := append(spans(nil), lost...)
	for _, p := range open {
		both.add(p.from, p.to)
	}
	return to - from + 1 - both.count(), waiting, nil
}
