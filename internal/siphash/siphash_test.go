package siphash

import "testing"

// The vector for 16 bytes 00 01 .. 0f under the key 00 01 .. 0f, from the
// reference implementation's vectors.h.
func TestPublishedVector(t *testing.T) {
	var key, m [16]byte
	for i := range key {
		key[i], m[i] = byte(i), byte(i)
	}
	if got := Sum16(&key, &m); got != 0x3f2acc7f57c29bdb {
		t.Errorf("got %016x", got)
	}
}
