// Package siphash is SipHash-2-4 with 64 bits of output (Aumasson and
// Bernstein, 2012), for the 7 bytes that a token covers: one block. It is what
// the guard checks in the kernel; it keeps floods out and authenticates nobody.
package siphash

import (
	"encoding/binary"
	"math/bits"
)

// Sum7 returns the SipHash-2-4 of m under key.
func Sum7(key *[16]byte, m *[7]byte) uint64 {
	k0, k1 := binary.LittleEndian.Uint64(key[:]), binary.LittleEndian.Uint64(key[8:])
	v := [4]uint64{0x736f6d6570736575 ^ k0, 0x646f72616e646f6d ^ k1, 0x6c7967656e657261 ^ k0, 0x7465646279746573 ^ k1}
	last := [8]byte{7: 7} // the length
	copy(last[:], m[:])
	w := binary.LittleEndian.Uint64(last[:])
	v[3] ^= w
	round(&v)
	round(&v)
	v[0] ^= w
	v[2] ^= 0xff
	for range 4 {
		round(&v)
	}
	return v[0] ^ v[1] ^ v[2] ^ v[3]
}

func round(v *[4]uint64) {
	v[0] += v[1]
	v[1] = bits.RotateLeft64(v[1], 13) ^ v[0]
	v[0] = bits.RotateLeft64(v[0], 32)
	v[2] += v[3]
	v[3] = bits.RotateLeft64(v[3], 16) ^ v[2]
	v[0] += v[3]
	v[3] = bits.RotateLeft64(v[3], 21) ^ v[0]
	v[2] += v[1]
	v[1] = bits.RotateLeft64(v[1], 17) ^ v[2]
	v[2] = bits.RotateLeft64(v[2], 32)
}
