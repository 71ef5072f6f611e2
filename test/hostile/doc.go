// Package hostile is a second, small TLCP (GB/T 38636-2020), written from the
// standard and apart from crypto/tlcp, to stand against it: it completes a
// genuine handshake with every suite, as client and as server, and spoils any
// message, record or key on the way. Only the primitives (SM2, SM3, SM4) are
// shared with the product. It verifies what a test must know and nothing else,
// so it is of no use as a TLCP stack.
//
//   - wire.go: bytes of the handshake messages
//   - record.go: records, plain, SM4-GCM and SM4-CBC with HMAC-SM3
//   - keys.go: PRF, ECC and ECDHE key exchange, signatures
//   - peer.go: what both sides do: send, read, transcript, the hooks that spoil
//   - client.go, server.go: the two sides, step by step
//   - pki.go: certificates, good and bad
//
// A handshake is a list of steps, so that a test can leave one out, repeat it or
// exchange two. The transcript holds what was sent, not what should have been:
// a peer that leaves out a message still computes the Finished that fits, and
// only the other side's order of states can refuse it.
package hostile
