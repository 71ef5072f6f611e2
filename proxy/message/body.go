package message

import (
	"bytes"
	"io"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// Framing says where a body ends (RFC 9112 §6.3).
type Framing uint8

// The framings.
const (
	None       Framing = iota // no body
	ByLength                  // after so many bytes
	ByChunks                  // after the last chunk and the trailer
	UntilClose                // with the connection; answers alone
)

// Body reads the content of one message. It is for one goroutine.
type Body struct {
	r       *Reader
	framing Framing
	left    int64 // of the body or of the chunk
	first   bool  // no chunk has been read
	lax     bool  // an answer's: chunk extensions are skipped
	limit   int   // bytes of a trailer
	err     error // io.EOF at the end

	Trailer exchange.Header // valid at the end
}

// maxChunkLine bounds the line of a chunk's size.
const maxChunkLine = 256

// Init makes b the body of the message whose head r has read. limit bounds the
// trailer. Until Read returns io.EOF the reader is not to be used otherwise.
func (b *Body) Init(r *Reader, f Framing, length int64, answer bool, limit int) {
	*b = Body{r: r, framing: f, first: true, lax: answer, limit: limit}
	if f == ByLength {
		b.left = length
	}
	if f == None || f == ByLength && length == 0 {
		b.err = io.EOF
	}
}

// Ended reports whether the body has been read to its end.
func (b *Body) Ended() bool { return b.err == io.EOF }

// Ready reports whether the next Read finds something without waiting.
func (b *Body) Ready() bool {
	if b.err != nil {
		return true
	}
	there := b.r.peek()
	if b.framing != ByChunks || b.left > 0 {
		return len(there) > 0
	}
	if !b.first {
		if len(there) < 2 {
			return false
		}
		there = there[2:]
	}
	size := bytes.IndexByte(there, '\n')
	return size >= 0 && len(there) > size+2
}

// Take takes the content that is here already, of this chunk if there are chunks.
// It is valid until the next read.
func (b *Body) Take() []byte {
	there := b.r.peek()
	if b.framing != UntilClose {
		there = there[:min(int64(len(there)), b.left)]
	}
	if b.err != nil || len(there) == 0 {
		return nil
	}
	b.r.r += len(there)
	b.left -= int64(len(there))
	if b.framing == ByLength && b.left == 0 {
		b.err = io.EOF
	}
	return there
}

// Framing returns how the body is framed.
func (b *Body) Framing() Framing { return b.framing }

// Read reads content. It returns io.EOF at the end, [io.ErrUnexpectedEOF] when
// the connection ended before, or why the framing is malformed. An error stays.
func (b *Body) Read(p []byte) (n int, err error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, b.err = b.read(p)
	if n > 0 && b.err != nil && b.err != io.EOF {
		return n, nil // the next call returns it
	}
	return n, b.err
}

func (b *Body) read(p []byte) (int, error) {
	if b.framing == ByChunks && b.left == 0 {
		if err := b.nextChunk(); err != nil {
			return 0, err
		}
	}
	if b.framing == UntilClose {
		return b.r.Read(p)
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case b.left == 0 && b.framing == ByLength:
		return n, io.EOF
	case err != nil:
		return n, short(err)
	}
	return n, nil
}

// nextChunk reads up to the data of the next chunk. io.EOF is the end of the
// body, its trailer included.
func (b *Body) nextChunk() error {
	if !b.first {
		line, err := b.r.line(2)
		if err == ErrLong {
			return ErrChunk
		}
		if err != nil {
			return err
		}
		if len(line) != 2 || line[0] != '\r' {
			return ErrChunk
		}
	}
	b.first = false
	line, err := b.r.line(maxChunkLine)
	if err == ErrLong {
		return ErrChunk
	}
	if err != nil {
		return err
	}
	if b.left, err = b.chunkSize(line); err != nil {
		return err
	}
	if b.left > 0 {
		return nil
	}
	if err := b.trailer(); err != nil {
		return err
	}
	return io.EOF
}

// chunkSize reads the line of a chunk's size: plain hexadecimal digits.
func (b *Body) chunkSize(line []byte) (n int64, err error) {
	if len(line) < 3 || line[len(line)-2] != '\r' {
		return 0, ErrChunk
	}
	line = line[:len(line)-2]
	i := 0
	for ; i < len(line); i++ {
		c := line[i]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			c = 0xff
		}
		if c == 0xff {
			break
		}
		if i >= 15 {
			return 0, ErrChunk
		}
		n = n<<4 | int64(c)
	}
	if i == 0 || i < len(line) && !(b.lax && (line[i] == ';' || line[i] == ' ' || line[i] == '\t')) {
		return 0, ErrChunk
	}
	return n, nil
}

// trailer reads the fields behind the last chunk.
func (b *Body) trailer() error {
	h := Head{answer: b.lax, Length: -1}
	size := 0
	for {
		line, err := b.r.line(b.limit - size)
		if err != nil {
			return err
		}
		if size += len(line); size >= b.limit {
			return ErrLong
		}
		line = line[:len(line)-1]
		h.lines = h.lines[:0]
		done, err := h.line(line, 0, false)
		if err != nil {
			return ErrTrailer
		}
		if done {
			return nil
		}
		m := h.lines[0]
		name := line[m.name:m.nameEnd]
		for _, bad := range []string{"host", "content-length", "transfer-encoding", "trailer", "connection"} {
			if fold(name, bad) {
				return ErrTrailer
			}
		}
		b.Trailer.Add(string(name), string(line[m.value:m.valueEnd]))
	}
}
