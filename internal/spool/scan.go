package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// scanner walks the frames of one segment. A frame counts when its checksum is
// right and its number is higher than the one before; where numbers do not
// follow each other, it must also open. What lies between is a bad stretch; the
// scanner looks for the next good frame behind it, with bounded work. It is for
// one goroutine.
type scanner struct {
	r     io.ReaderAt
	class Class
	most  int               // sealed bytes of a frame, at most
	last  uint64            // number of the frame before
	trust func(*frame) bool // asked about a frame after a jump
	off   int64             // of what comes next
	limit int64             // end of the file

	buf   []byte
	start int64 // offset of buf[0]
	work  int64 // bytes checked in bad stretches

	// After a frame: the bad stretch before it. At the end: the one behind the
	// last frame. Zeros behind it are not counted.
	badFrom, badTo int64
}

// scanChunk is how much is read at once.
const scanChunk = 256 << 10

// fill returns at least n bytes at off, or what the file has of them. The slice
// is valid until the next call.
func (s *scanner) fill(off int64, n int) ([]byte, error) {
	if n = int(min(int64(n), s.limit-off)); n <= 0 {
		return nil, nil
	}
	if off < s.start || off+int64(n) > s.start+int64(len(s.buf)) {
		want := int(min(int64(max(n, scanChunk)), s.limit-off))
		if cap(s.buf) < want {
			s.buf = make([]byte, want)
		}
		s.buf = s.buf[:want]
		got, err := s.r.ReadAt(s.buf, off)
		s.buf, s.start = s.buf[:got], off
		if err != nil && !errors.Is(err, io.EOF) {
			s.buf = s.buf[:0]
			return nil, fmt.Errorf("read segment: %w", err)
		}
	}
	return s.buf[off-s.start:], nil
}

// at returns the frame at off, or nil if none is there.
func (s *scanner) at(off int64) (*frame, error) {
	b, err := s.fill(off, frameSize)
	if err != nil || len(b) < frameSize {
		return nil, err
	}
	n := frameLen(b, s.class, s.most)
	if n == 0 || off+int64(n) > s.limit {
		return nil, nil
	}
	f := &frame{kind: b[2], seq: be.Uint64(b[8:]), at: int64(be.Uint64(b[16:])), off: off}
	if f.seq < s.last || f.seq == s.last && f.kind != kindEnd {
		return nil, nil
	}
	if b, err = s.fill(off, n); err != nil || len(b) < n {
		return nil, err
	}
	f.raw = b[:n]
	if off > s.off {
		s.work += int64(n)
	}
	if frameSum(f.raw) != be.Uint32(b[24:]) {
		return nil, nil
	}
	if (f.seq != s.last+1 || off > s.off || f.kind == kindEnd) && !s.trust(f) {
		return nil, nil
	}
	return f, nil
}

// next returns the next frame, valid until the call after it, or nil at the
// end.
func (s *scanner) next() (*frame, error) {
	s.badFrom, s.badTo = s.off, s.off
	for off := s.off; ; {
		if s.work <= 8*s.limit { // made to waste time: no more of it
			f, err := s.at(off)
			if err != nil {
				return nil, err
			}
			if f != nil {
				s.badTo = off
				s.off, s.last = f.end(), f.seq
				return f, nil
			}
		}
		// No frame here: go on to the next byte that could begin one.
		for from := off + 1; ; {
			b, err := s.fill(off, frameSize)
			if err != nil {
				return nil, err
			}
			if len(b) == 0 {
				return nil, nil
			}
			skip := int(from - off)
			if skip >= len(b) {
				s.note(b, off)
				return nil, nil
			}
			if i := bytes.Index(b[skip:], []byte("YM")); i >= 0 {
				s.note(b[:skip+i], off)
				off = from + int64(i)
				break
			}
			keep := len(b) - 1 // its last byte may be a Y
			if off+int64(len(b)) >= s.limit {
				keep = len(b)
			}
			s.note(b[:keep], off)
			off += int64(keep)
			from = off
			if off >= s.limit {
				return nil, nil
			}
		}
	}
}

// note extends the bad stretch over b if it holds anything.
func (s *scanner) note(b []byte, off int64) {
	if n := len(bytes.TrimRight(b, "\x00")); n > 0 {
		s.badTo = off + int64(n)
	}
}
