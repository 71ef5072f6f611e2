package message

import (
	"bytes"
	"io"
	"sync"
)

// readSize is a reader's buffer: most heads fit.
const readSize = 8 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, readSize); return &b }}

// Reader reads the messages of one direction of a connection, one after the
// other. It takes its buffer from a pool while there is something in it. A
// Reader is for one goroutine.
type Reader struct {
	src  io.Reader // may be an awaiter
	buf  *[]byte   // nil: nothing is held
	r, w int       // what is read and not taken is (*buf)[r:w]
	one  [1]byte
}

// awaiter is a source that knows how to wait: Await blocks until it has read
// something into p or, with 0 and no error, until Read would.
type awaiter interface{ Await(p []byte) (int, error) }

// Init makes r read from src.
func (r *Reader) Init(src io.Reader) {
	*r = Reader{src: src}
}

// Room returns where more may be put behind what is buffered, for somebody who
// reads by himself; Put says how many bytes he put there.
func (r *Reader) Room() []byte {
	r.hold()
	if r.r == r.w {
		r.r, r.w = 0, 0
	}
	return (*r.buf)[r.w:]
}

// Put takes the first n bytes of Room.
func (r *Reader) Put(n int) { r.w += n }

// Buffered returns how many bytes were read and not taken.
func (r *Reader) Buffered() int { return r.w - r.r }

// peek returns what is buffered.
func (r *Reader) peek() []byte {
	if r.buf == nil {
		return nil
	}
	return (*r.buf)[r.r:r.w]
}

// Wait blocks until at least one byte is there. A reader that has none holds no
// buffer meanwhile.
func (r *Reader) Wait() error {
	if r.r < r.w {
		return nil
	}
	r.Release()
	wait, _ := r.src.(awaiter)
	for {
		var n int
		var err error
		if wait == nil {
			n, err = r.src.Read(r.one[:])
		} else if n, err = wait.Await(r.one[:]); n == 0 && err == nil {
			return r.fill()
		}
		if n > 0 {
			r.hold()
			(*r.buf)[0] = r.one[0]
			r.w = 1
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Release gives the buffer back if nothing is in it.
func (r *Reader) Release() {
	if r.buf == nil || r.r < r.w {
		return
	}
	if len(*r.buf) == readSize {
		buffers.Put(r.buf)
	}
	r.buf, r.r, r.w = nil, 0, 0
}

// Drop gives the buffer back with what is in it: the reader is used no more.
func (r *Reader) Drop() {
	r.r = r.w
	r.Release()
}

func (r *Reader) hold() {
	if r.buf == nil {
		r.buf = buffers.Get().(*[]byte)
	}
}

// fill reads more behind what is there.
func (r *Reader) fill() error {
	r.hold()
	b := *r.buf
	if r.r == r.w {
		r.r, r.w = 0, 0
	}
	if r.w == len(b) {
		if r.r > 0 {
			r.w = copy(b, b[r.r:r.w])
			r.r = 0
		} else {
			bigger := make([]byte, 2*len(b))
			r.w = copy(bigger, b)
			if len(b) == readSize {
				buffers.Put(r.buf)
			}
			r.buf, b = &bigger, bigger
		}
	}
	for range 100 {
		n, err := r.src.Read(b[r.w:])
		r.w += n
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// line returns the next line with its end, which is at most limit bytes long.
// It is valid until the next read.
func (r *Reader) line(limit int) ([]byte, error) {
	seen := 0
	for {
		if r.buf != nil {
			b := (*r.buf)[r.r:r.w]
			if end := bytes.IndexByte(b[seen:], '\n'); end >= 0 {
				end += seen + 1
				if end > limit {
					return nil, ErrLong
				}
				r.r += end
				return b[:end], nil
			}
			if seen = len(b); seen >= limit {
				return nil, ErrLong
			}
		}
		if err := r.fill(); err != nil {
			return nil, short(err)
		}
	}
}

// Read takes what is buffered, or reads from below.
func (r *Reader) Read(p []byte) (int, error) {
	if r.r == r.w {
		if len(p) >= 4<<10 {
			r.Release()
			return r.src.Read(p)
		}
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, (*r.buf)[r.r:r.w])
	r.r += n
	return n, nil
}

// short turns the end of the connection inside a message into
// [io.ErrUnexpectedEOF].
func short(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
