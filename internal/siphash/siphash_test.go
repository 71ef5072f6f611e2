package siphash

import "testing"

// The vector for 7 bytes 00 01 .. 06 under the key 00 01 .. 0f, from the
// reference implementation's vectors.h.
func TestPublishedVector(t *testing.T) {
	var key [16]byte
	for i := range key {
		key[i] = byte(i)
	}
	if got := Sum7(&key, (*[7]byte)(key[:7])); got != 0xab0200f58b01d137 {
		t.Errorf("got %016x", got)
	}
}
