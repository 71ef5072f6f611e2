package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/bits"
)

// Lines of one frame are much alike: names, gateway, subject and application are
// the same in most. Packed, a line says only what it has that the line before it
// has not, so that less must be sealed, written and kept: about a sixth.
//
// A packed line is a series of steps until its line feed. A step is
//
//	uvarint  n: so many bytes are those of the line before, from where it stands
//	uvarint  m: so many bytes follow
//	m bytes
//
// and then the line before stands at its next comma, or its end. A line is
// never empty, the first one of a frame has an empty one before it.

// pack appends the packed form of lines, each with its line feed, to b.
func pack(b, lines []byte) []byte {
	var before []byte
	for len(lines) > 0 {
		end := bytes.IndexByte(lines, '\n') + 1
		if end == 0 {
			end = len(lines) // the unpacked form has no line feed either
		}
		line := lines[:end]
		lines = lines[end:]
		b = packLine(b, line, before)
		before = line
	}
	return b
}

func packLine(b, line, before []byte) []byte {
	for {
		same := commonPrefix(line, before)
		line, before = line[same:], before[same:]
		other := nextComma(line)
		if same+other == 0 { // it stands at a comma, the line before elsewhere
			other = 1 + nextComma(line[1:])
		}
		b = binary.AppendUvarint(b, uint64(same))
		b = binary.AppendUvarint(b, uint64(other))
		b = append(b, line[:other]...)
		if line = line[other:]; len(line) == 0 {
			return b
		}
		before = before[nextComma(before):]
	}
}

// nextComma returns where the first comma of b is, or its length.
func nextComma(b []byte) int {
	if i := bytes.IndexByte(b, ','); i >= 0 {
		return i
	}
	return len(b)
}

// commonPrefix returns how many bytes a and b begin with alike.
func commonPrefix(a, b []byte) int {
	n := min(len(a), len(b))
	i := 0
	for ; i+8 <= n; i += 8 {
		if d := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); d != 0 {
			return i + bits.TrailingZeros64(d)/8
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

var errPacked = errors.New("its packed lines are malformed")

// unpack returns the lines that pack has packed, which are at most limit bytes
// long together.
func unpack(b []byte, limit int) ([]byte, error) {
	var out, before []byte // before is a part of out
	begin := 0             // of the line
	at := 0                // in before
	for len(b) > 0 {
		same, n := binary.Uvarint(b)
		if n <= 0 || same > uint64(len(before)-at) {
			return nil, errPacked
		}
		b = b[n:]
		other, n := binary.Uvarint(b)
		if n <= 0 || other > uint64(len(b)-n) || same+other == 0 || uint64(len(out))+same+other > uint64(limit) {
			return nil, errPacked
		}
		out = append(out, before[at:at+int(same)]...)
		out = append(out, b[n:n+int(other)]...)
		b = b[n+int(other):]
		at += int(same)
		at += nextComma(before[at:])
		if out[len(out)-1] == '\n' {
			before, begin, at = out[begin:], len(out), 0
		}
	}
	return out, nil
}
