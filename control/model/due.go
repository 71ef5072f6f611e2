package model

import (
	"container/heap"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/control/store"
)

// deadline says when the entry of key may end. It is a hint: an entry that was
// written again has a later one, too.
type deadline struct {
	at  time.Time
	key string
}

type deadlines []deadline

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].at.Before(d[j].at) }
func (d deadlines) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }
func (d *deadlines) Push(x any)        { *d = append(*d, x.(deadline)) }
func (d *deadlines) Pop() any {
	last := len(*d) - 1
	x := (*d)[last]
	*d = (*d)[:last]
	return x
}

func (d *deadlines) add(at time.Time, key string, ends bool) {
	if ends {
		heap.Push(d, deadline{at, key})
	}
}

// Due returns the deletions of what has ended at now, at most limit of them,
// with comparisons that let a newer entry live, and what they are. What it
// returns is forgotten: the caller must apply it.
func (s *State) Due(now time.Time, limit int) (compares []store.Compare, ops []store.Op) {
	seen := map[string]bool{}
	for len(s.due) > 0 && len(ops) < limit && !s.due[0].at.After(now) {
		d := heap.Pop(&s.due).(deadline)
		end, ok := s.endOf(d.key)
		if !ok || end.After(now) || seen[d.key] {
			continue
		}
		seen[d.key] = true
		compares = append(compares, store.Compare{Key: d.key, Modified: s.Modified[d.key]})
		ops = append(ops, store.Delete(d.key))
	}
	return compares, ops
}

// NextDue returns the earliest time at which [State.Due] may have work.
func (s *State) NextDue() (time.Time, bool) {
	if len(s.due) == 0 {
		return time.Time{}, false
	}
	return s.due[0].at, true
}

func (s *State) endOf(key string) (time.Time, bool) {
	prefix, id, _ := strings.Cut(key, "/")
	switch prefix + "/" {
	case KeyGrant:
		if g := s.Grants[id]; g != nil && !g.Until.IsZero() {
			return g.Until.Add(-EarlyEnd), true
		}
	case KeySession:
		if v := s.Sessions[pairOf(key)]; v != nil {
			return v.end(), true
		}
	case KeyLock:
		kind, what, _ := strings.Cut(id, "/")
		if l := s.Locks[LockRef{kind, what}]; l != nil && !l.Until.IsZero() {
			return l.Until, true
		}
	case KeyRevocation:
		if r := s.Revocations[id]; r != nil {
			return r.Until, true
		}
	}
	return time.Time{}, false
}
