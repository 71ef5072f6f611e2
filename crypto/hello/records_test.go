package hello

import (
	"math/rand/v2"
	"testing"
)

// Whatever the reads are, the end of a record is known, and one that came alone.
func TestRecordsAreFollowedThroughAnyReads(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var stream []byte
		ends := map[int]int{} // end → length
		for range 1 + rng.IntN(6) {
			n := rng.IntN(300)
			stream = append(stream, 23, 3, 3, byte(n>>8), byte(n))
			stream = append(stream, make([]byte, n)...)
			ends[len(stream)] = n
		}
		c := Replay(nil, nil)
		clean := true
		for at := 0; at < len(stream); {
			n := 1 + rng.IntN(min(len(stream)-at, 700))
			if rng.IntN(2) == 0 { // up to the next end
				for n = 1; ends[at+n] == 0 && at+n < len(stream); n++ {
				}
			}
			c.records.follow(stream[at : at+n])
			at += n
			length, whole := ends[at]
			if got, want := c.OneRecord(), length; whole && clean && n == recordHead+length && length > 0 {
				if got != want {
					t.Fatalf("a record of %d bytes alone: got %d", want, got)
				}
			} else if got != 0 {
				t.Fatalf("%d bytes to %d: got a record of %d", n, at, got)
			}
			if clean = c.Mark(); clean != whole && length != 0 {
				t.Fatalf("at %d of %v: clean %v", at, ends, clean)
			}
		}
	}
}
