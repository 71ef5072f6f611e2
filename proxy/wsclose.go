package proxy

import (
	"encoding/binary"
	"net"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// frames follows the frames of one direction of a WebSocket (RFC 6455 §5.2), to
// know where one ends: only there may a frame of ours be put.
type frames struct {
	head   [14]byte
	n      int    // bytes of head
	left   uint64 // bytes of the payload still to come
	closed bool   // a close frame went by
}

// follow takes bytes that were sent.
func (f *frames) follow(b []byte) {
	for len(b) > 0 {
		if f.left > 0 {
			n := min(f.left, uint64(len(b)))
			f.left -= n
			b = b[n:]
			continue
		}
		f.head[f.n] = b[0]
		f.n++
		b = b[1:]
		if f.n < 2 || f.n < f.headLength() {
			continue
		}
		f.closed = f.closed || f.head[0]&0x0f == 8
		switch n := f.head[1] & 0x7f; n {
		case 126:
			f.left = uint64(binary.BigEndian.Uint16(f.head[2:]))
		case 127:
			f.left = binary.BigEndian.Uint64(f.head[2:])
		default:
			f.left = uint64(n)
		}
		f.n = 0
	}
}

func (f *frames) headLength() int {
	n := 2
	switch f.head[1] & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if f.head[1]&0x80 != 0 {
		n += 4
	}
	return n
}

// farewell tells the client of a WebSocket that was cut why, as code 1008
// (policy violation), if a frame can be put where its stream stands. The
// exchange's own grace ends a client that does not take it.
func (f *frames) farewell(client net.Conn, r reason.Reason) {
	const mostText = 123 // bytes beside the code in a control frame
	if f.n > 0 || f.left > 0 || f.closed {
		return
	}
	text := r.Result()
	if len(text) > mostText {
		text = r.Public().Code()
	}
	b := append([]byte{0x88, byte(2 + len(text)), 1008 >> 8, 1008 & 0xff}, text...)
	_ = client.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = client.Write(b) // a courtesy: the connection ends either way
}
