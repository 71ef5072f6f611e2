package hello

// records follows the records of TLS (RFC 8446 §5.1) in what is read from below,
// so that it is known when the protocol has nothing of one in its buffers.
type records struct {
	head  [recordHead]byte
	have  uint8  // bytes of the head of a record that has begun
	reads uint8  // since Mark, up to 2
	only  uint16 // length of the record that the first read since Mark was, with its head and nothing else; 0: it was not so
	left  int32  // bytes of the record that are to come
}

const recordHead = 5

// follow takes what a read has brought.
func (r *records) follow(b []byte) {
	if len(b) == 0 {
		return
	}
	r.reads = min(r.reads+1, 2)
	if r.have == 0 && r.left == 0 && len(b) > recordHead {
		if n := int(b[3])<<8 | int(b[4]); len(b) == recordHead+n {
			r.only = uint16(n)
			return
		}
	}
	r.only = 0
	for len(b) > 0 {
		if r.left > 0 {
			n := min(int(r.left), len(b))
			r.left -= int32(n)
			b = b[n:]
			continue
		}
		n := copy(r.head[r.have:], b)
		b = b[n:]
		if r.have += uint8(n); r.have == recordHead {
			r.have, r.left = 0, int32(r.head[3])<<8|int32(r.head[4])
		}
	}
}

// Mark says that the protocol above holds no whole record. It reports whether it
// holds no part of one either.
func (c *ReplayConn) Mark() bool {
	c.records.reads, c.records.only = 0, 0
	return c.records.have == 0 && c.records.left == 0
}

// OneRecord returns the length of the record that was all that was read since
// Mark, in one read; 0: something else was read.
func (c *ReplayConn) OneRecord() int {
	if c.records.reads != 1 {
		return 0
	}
	return int(c.records.only)
}
