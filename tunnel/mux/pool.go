package mux

import "sync"

// chunk is a pooled buffer. buf[r:w] is what was read in and not yet taken out.
type chunk struct {
	buf  []byte
	r, w int
	next *chunk
}

// The sizes of chunks: keystrokes, one TLS record, one record of ours.
const (
	smallChunk = 2 << 10
	chunkSize  = 16 << 10
	recordSize = MaxRecord
)

var pools = [...]sync.Pool{
	{New: func() any { return &chunk{buf: make([]byte, smallChunk)} }},
	{New: func() any { return &chunk{buf: make([]byte, chunkSize)} }},
	{New: func() any { return &chunk{buf: make([]byte, recordSize)} }},
}

func class(n int) int {
	switch {
	case n <= smallChunk:
		return 0
	case n <= chunkSize:
		return 1
	}
	return 2
}

// getChunk returns an empty chunk of at least n bytes; n is at most recordSize.
func getChunk(n int) *chunk { return pools[class(n)].Get().(*chunk) }

// putChunk gives c back. Nobody may use it any more.
func putChunk(c *chunk) {
	c.r, c.w, c.next = 0, 0, nil
	pools[class(len(c.buf))].Put(c)
}

// chunkLen returns the size of the chunk that getChunk returns for n.
func chunkLen(n int) int { return [...]int{smallChunk, chunkSize, recordSize}[class(n)] }
