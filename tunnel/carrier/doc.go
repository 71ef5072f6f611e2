// Package carrier is the connection under a tunnel and the agent's half of the
// messages in it (CSA GCR 002-2025 clause 8, docs/tunnel.md §1 and §5).
//
// A [Dialer] makes a carrier: [TLS] now, TLCP and QUIC later. [Client] is the
// agent's end of a tunnel over one: hello, access request (Table 12), renewal
// (Table 14) and notices (Table 15). [Sealer] closes and opens the messages of
// both ends.
package carrier
