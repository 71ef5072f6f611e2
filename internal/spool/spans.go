package spool

import "sort"

// span is the sequence numbers from to to, both included.
type span struct{ from, to uint64 }

// spans is a set of sequence numbers: sorted, apart and not touching.
type spans []span

// find returns the index of the first span that ends at seq or later.
func (s spans) find(seq uint64) int {
	return sort.Search(len(s), func(i int) bool { return s[i].to >= seq })
}

func (s spans) has(seq uint64) bool {
	i := s.find(seq)
	return i < len(s) && s[i].from <= seq
}

// add puts from to to into the set.
func (s *spans) add(from, to uint64) {
	if from > to {
		return
	}
	v := *s
	if n := len(v); n > 0 && v[n-1].from <= from && from <= v[n-1].to+1 { // the usual case: at the end
		v[n-1].to = max(v[n-1].to, to)
		return
	}
	i := sort.Search(len(v), func(i int) bool { return v[i].to+1 >= from }) // first that touches
	j := i
	for j < len(v) && v[j].from <= to+1 {
		from, to = min(from, v[j].from), max(to, v[j].to)
		j++
	}
	if i == j {
		v = append(v, span{})
		copy(v[i+1:], v[i:])
		v[i] = span{from, to}
	} else {
		v[i] = span{from, to}
		v = append(v[:i+1], v[j:]...)
	}
	*s = v
}

// cut takes from to to out of the set.
func (s *spans) cut(from, to uint64) {
	if from > to {
		return
	}
	var out spans
	for _, p := range *s {
		if p.to < from || p.from > to {
			out = append(out, p)
			continue
		}
		if p.from < from {
			out = append(out, span{p.from, from - 1})
		}
		if p.to > to {
			out = append(out, span{to + 1, p.to})
		}
	}
	*s = out
}

// count returns how many numbers are in the set.
func (s spans) count() (n uint64) {
	for _, p := range s {
		n += p.to - p.from + 1
	}
	return n
}

// without returns the numbers from to to that are not in the set.
func (s spans) without(from, to uint64) (out spans) {
	for i := s.find(from); from <= to; i++ {
		if i == len(s) || s[i].from > to {
			return append(out, span{from, to})
		}
		if s[i].from > from {
			out = append(out, span{from, s[i].from - 1})
		}
		if s[i].to >= to {
			return out
		}
		from = s[i].to + 1
	}
	return out
}
