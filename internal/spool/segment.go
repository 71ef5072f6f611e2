package spool

import (
	"crypto/cipher"
	"sort"

	"github.com/emmansun/gmsm/sm3"
)

// segment is what is known of one file. Its log's mutex guards it, once it is
// part of a log.
type segment struct {
	header
	name string // path
	aead cipher.AEAD

	size  int64  // on disk, with zeros taken ahead
	end   int64  // of the last frame
	last  uint64 // number of the last record frame; first-1: none
	runs  spans  // numbers of the records in it
	index []mark // one frame in markEvery, in order
	count int    // frames
	gaps  []gapFrame

	headerErr error  // the header was not as written
	ended     bool   // it has its end frame
	doomed    bool   // its records are in a gap; the file goes when the gap is stored
	wait      uint64 // the gaps frame that stores it

}

// mark says where a frame is.
type mark struct {
	seq uint64
	off int64
}

const markEvery = 64

// gapFrame is the content of a gaps frame.
type gapFrame struct {
	seq  uint64
	gaps []Gap
}

// note adds a frame that is in the file.
func (s *segment) note(kind byte, seq uint64, off, end int64) {
	if kind != kindEnd {
		if s.count%markEvery == 0 {
			s.index = append(s.index, mark{seq, off})
		}
		s.count++
		s.runs.add(seq, seq)
		s.last = seq
	}
	s.end = end
}

// seek returns an offset at which a scan finds seq, if the segment has it, and
// the number before that offset.
func (s *segment) seek(seq uint64) (off int64, last uint64) {
	i := sort.Search(len(s.index), func(i int) bool { return s.index[i].seq > seq })
	if i == 0 {
		return headerSize, s.first - 1
	}
	return s.index[i-1].off, s.index[i-1].seq - 1
}

// hole is a bad stretch of a file.
type hole struct {
	file     string
	from, to int64
	tail     bool // no good frame behind it
}

// load reads the segment in f and checks every frame.
func load(k *keys, h header, name string, f file, most int) (*segment, []hole, error) {
	size, err := f.Size()
	if err != nil {
		return nil, nil, err
	}
	s := &segment{header: h, name: name, size: size, end: min(headerSize, size), last: h.first - 1}
	sc := s.scan(f, most, headerSize, h.first-1, size)
	head, err := sc.fill(0, headerSize)
	if err != nil {
		return nil, nil, err
	}
	s.headerErr = s.header.check(k, head)
	if s.aead, err = k.segment(&s.header); err != nil {
		return nil, nil, err
	}
	var holes []hole
	for {
		fr, err := sc.next()
		if err != nil {
			return nil, nil, err
		}
		if sc.badTo > sc.badFrom || fr != nil && fr.off > sc.badFrom {
			holes = append(holes, hole{name, sc.badFrom, sc.badTo, fr == nil})
		}
		if fr == nil {
			return s, holes, nil
		}
		if fr.kind == kindGaps {
			if p, err := fr.open(s.aead); err == nil {
				if gaps, err := parseGaps(p); err == nil {
					s.gaps = append(s.gaps, gapFrame{fr.seq, gaps})
				}
			}
		}
		s.note(fr.kind, fr.seq, fr.off, fr.end())
		s.ended = fr.kind == kindEnd
	}
}

// scan returns a scanner over the segment's file from off on.
func (s *segment) scan(f file, most int, off int64, last uint64, limit int64) *scanner {
	return &scanner{r: f, class: s.class, most: most, last: last, off: off, limit: limit, trust: func(fr *frame) bool {
		_, err := fr.open(s.aead)
		return err == nil
	}}
}

// chainOf computes the chain value after the last frame before end.
func (s *segment) chainOf(f file, most int) ([sm3.Size]byte, error) {
	chain := s.chainStart()
	sc := s.scan(f, most, headerSize, s.first-1, s.end)
	for {
		fr, err := sc.next()
		if err != nil || fr == nil {
			return chain, err
		}
		chain = chainNext(chain, fr.raw)
	}
}
