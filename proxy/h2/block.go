package h2

import (
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// maxContinued is how many CONTINUATION frames one block may take: nobody needs
// more than a few (CVE-2024-27316).
const maxContinued = 64

// block is the fields of a HEADERS frame and of the CONTINUATION frames behind
// it. A connection has one, which the next block overwrites.
type block struct {
	id        uint32
	last      bool                // nothing follows in the stream
	circular  bool                // it depends on itself
	fields    []hpack.HeaderField // pseudo fields first
	truncated bool                // there are more, for which there was no room
	invalid   bool                // one is not as RFC 9113 §8.2 has it, or pseudo and behind a regular one
	regular   bool                // one was not pseudo
	room      uint32
}

// readBlock reads the block that f begins into c.block. Whatever is wrong with
// a field, the block is read to its end: the table of fields is the connection's.
func (c *conn) readBlock(f *http2.HeadersFrame) error {
	b := &c.block
	*b = block{id: f.StreamID, last: f.StreamEnded(), fields: b.fields[:0], room: uint32(c.s.cfg.HeaderBytes)}
	b.circular = f.HasPriority() && f.Priority.StreamDep == f.StreamID
	c.decoder.SetEmitEnabled(true)
	part, ended := f.HeaderBlockFragment(), f.HeadersEnded()
	for n := 0; ; n++ {
		// No long work for what is thrown away.
		if n > maxContinued || len(part) > 0 && (b.invalid || uint64(len(part)) > 4*uint64(b.room)) {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		if _, err := c.decoder.Write(part); err != nil {
			return http2.ConnectionError(http2.ErrCodeCompression)
		}
		if ended {
			break
		}
		next, err := c.fr.ReadFrame()
		if err != nil {
			return err
		}
		more := next.(*http2.ContinuationFrame) // the framer lets nothing else come here
		part, ended = more.HeaderBlockFragment(), more.HeadersEnded()
	}
	if c.decoder.Close() != nil {
		return http2.ConnectionError(http2.ErrCodeCompression)
	}
	if b.invalid {
		return http2.StreamError{StreamID: b.id, Code: http2.ErrCodeProtocol}
	}
	return nil
}

// forget lets the fields go, of which a waiting connection needs none.
func (b *block) forget() {
	clear(b.fields)
	if b.fields = b.fields[:0]; cap(b.fields) > 64 {
		b.fields = nil
	}
}

// field takes one field from the decoder.
func (c *conn) field(f hpack.HeaderField) {
	b := &c.block
	pseudo := len(f.Name) > 0 && f.Name[0] == ':'
	switch {
	case pseudo && b.regular, !pseudo && !fieldName(f.Name), exchange.HasControl(f.Value):
		b.invalid = true
	case f.Size() > b.room:
		b.truncated, b.room = true, 0
	default:
		b.regular = b.regular || !pseudo
		b.room -= f.Size()
		b.fields = append(b.fields, f)
		return
	}
	c.decoder.SetEmitEnabled(false)
}

// fieldName reports whether n is a token (RFC 9110 §5.6.2) in lower case.
func fieldName(n string) bool {
	for i := 0; i < len(n); i++ {
		if !lowerToken[n[i]] {
			return false
		}
	}
	return n != ""
}

var lowerToken = func() (t [256]bool) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz") {
		t[c] = true
	}
	return t
}()
