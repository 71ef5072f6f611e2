package hello

// records follows the records of TLS (RFC 8446 §5.1) in what is read from below,
// so that it is known when the protocol has nothing of one in its buffers.
type records struct {
	have uint8  // bytes of the head of a record that has begun
	high uint8  // of its length
	left uint16 // bytes of the record that are to come
	only uint16 // length of the record that the one read since Mark was, with its head and nothing else; 0: no read; spoiled: others
}

const spoiled = 1<<16 - 1

const recordHead = 5

// follow takes what a read has brought.
func (r *records) follow(b []byte) {
	if len(b) == 0 {
		return
	}
	if r.have == 0 && r.left == 0 && len(b) > recordHead {
		if n := int(b[3])<<8 | int(b[4]); len(b) == recordHead+n && r.only == 0 {
			r.only = uint16(n)
			return
		}
	}
	r.only = spoiled
	for len(b) > 0 {
		if r.left > 0 {
			n := min(int(r.left), len(b))
			r.left -= uint16(n)
			b = b[n:]
			continue
		}
		r.have++
		switch r.have {
		case recordHead - 1:
			r.high = b[0]
		case recordHead:
			r.have, r.left = 0, uint16(r.high)<<8|uint16(b[0])
		}
		b = b[1:]
	}
}

// Mark says that the protocol above holds no whole record. It reports whether it
// holds no part of one either.
func (c *ReplayConn) Mark() bool {
	c.records.only = 0
	return c.records.have == 0 && c.records.left == 0
}

// OneRecord returns the length of the record that was all that was read since
// Mark, in one read; 0: something else was read, or nothing.
func (c *ReplayConn) OneRecord() int {
	if c.records.only == spoiled {
		return 0
	}
	return int(c.records.only)
}
