// Package tlcp is the transport layer cryptography protocol of GB/T 38636-2020,
// client and server: what TLS would be had it been made of SM2, SM3 and SM4.
// The primitives are github.com/emmansun/gmsm's; the protocol is written here.
// Files and names are those of crypto/tls, so that who knows the one finds the
// way in the other.
//
// # What differs from TLS 1.2
//
// A party has two certificates ([Pair]): with the key of the first it signs,
// with that of the second it decrypts or agrees on keys. The second key is made
// by the authority and held in escrow there; the first is the party's own. The
// Certificate message carries both, signing certificate first.
//
// There are two ways to agree on the master secret, and two ciphers:
//
//	ECC_SM4_GCM_SM3    0xE053   browsers speak the two ECC suites only
//	ECC_SM4_CBC_SM3    0xE013
//	ECDHE_SM4_GCM_SM3  0xE051   forward secrecy, both sides need a Pair
//	ECDHE_SM4_CBC_SM3  0xE011
//
// With ECC the client encrypts 48 random bytes to the server's encryption
// certificate: whoever gets that key later reads what was recorded today. With
// ECDHE both sides make an ephemeral key and run the SM2 key exchange
// (GB/T 32918.3) over it and the encryption keys. Yumen's own links use ECDHE;
// ECC is for browsers. Who holds the server's encryption key in escrow could
// also talk a client that enables both into ECC, unless the client proves
// itself by a certificate: then its signature covers what was offered.
//
// Every record and hello carries version 0x0101. The rest is TLS 1.2 with SM3
// in the pseudo random function, without its extensions' inventions: there is
// no renegotiation (HelloRequest is declined, a second ClientHello is fatal),
// no compression, no extended master secret, no fallback to anything.
//
// # The walk of a handshake
//
//	client                                server
//	ClientHello                 ────▶
//	                                      ServerHello
//	                                      Certificate         sign, enc, intermediates
//	                                      ServerKeyExchange   signed by the sign key
//	                                      CertificateRequest  when a client is to prove itself
//	                            ◀────     ServerHelloDone
//	Certificate                           when asked
//	ClientKeyExchange
//	CertificateVerify                     signed by the client's sign key
//	ChangeCipherSpec, Finished  ────▶
//	                            ◀────     ChangeCipherSpec, Finished
//
// handshake_client.go and handshake_server.go go through it in this order. A
// resumed session (by identifier, or by ticket when the client offers tickets)
// has the hellos and the two last lines only, in the other order.
//
// Each handshake message travels in a record of its own, because peers exist
// that read exactly one; what is received may be joined or split at will.
//
// # Start
//
// A server needs [Config].Certificates, a client RootCAs and ServerName:
//
//	pair, err := tlcp.NewPair(sign, enc)
//	ln, err := tlcp.Listen("tcp", "[::]:443", &tlcp.Config{Certificates: []*tlcp.Pair{pair}})
//	c, err := tlcp.Dial(ctx, "tcp", "gw.example.org:443", &tlcp.Config{RootCAs: roots})
//
// Nothing is accepted that was not verified: there is no switch that turns
// verification off. A [Conn] is a net.Conn and serves net/http as it is; it is
// no *tls.Conn, so a server must do the handshake itself before it can know
// the ALPN protocol.
package tlcp
