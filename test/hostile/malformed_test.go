package hostile

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// over ends our side after a spoiled handshake: the product must end too, and
// the alert, if there was one, is returned with what the product says.
func over(t *testing.T, p *Peer, done <-chan outcome) (*Alert, outcome) {
	t.Helper()
	p.CloseWrite()
	p.Deadline(patience)
	a, err := p.End()
	if err != nil {
		t.Errorf("after the end of our side: %v", err)
	}
	p.Conn.Close()
	return a, result(t, done)
}

// sample returns about n numbers below size; all of them in the long form.
func sample(size, n int) []int {
	step := 1
	if !long() && size > n {
		step = size/n | 1
	}
	var out []int
	for i := 0; i < size; i += step {
		out = append(out, i)
	}
	return out
}

// spoils returns ways to change one message, header included: bytes of it,
// truncated with a header that fits, with more behind, with a wrong header.
// size is the length of the genuine message.
func spoils(size int) map[string]func([]byte) []byte {
	out := map[string]func([]byte) []byte{
		"a byte more": func(m []byte) []byte { return Message(m[0], append(bytes.Clone(m[4:]), 7)) },
		"100 bytes more": func(m []byte) []byte {
			return Message(m[0], append(bytes.Clone(m[4:]), bytes.Repeat([]byte{7}, 100)...))
		},
		"header says one more": func(m []byte) []byte {
			return append(append([]byte{m[0]}, vec(3, make([]byte, len(m)-3))[:3]...), m[4:]...)
		},
		"header says one less": func(m []byte) []byte {
			return append(append([]byte{m[0]}, vec(3, make([]byte, max(0, len(m)-5)))[:3]...), m[4:]...)
		},
		"header says 16 MiB": func(m []byte) []byte { return append([]byte{m[0], 255, 255, 255}, m[4:]...) },
		"twice in one":       func(m []byte) []byte { return append(bytes.Clone(m), m...) },
	}
	for _, i := range sample(size-4, 8) {
		out[named("cut at %d", i)] = func(m []byte) []byte { return Message(m[0], m[4:4+min(i, len(m)-4)]) }
	}
	for _, i := range sample(size, 14) {
		for _, x := range []byte{1, 0x80} {
			out[named("byte %d changed by %02x", i, x)] = func(m []byte) []byte {
				m = bytes.Clone(m)
				m[min(i, len(m)-1)] ^= x
				return m
			}
		}
	}
	return out
}

// mustRefuse are spoils that no peer may take, whatever the message.
func mustRefuse(name string) bool {
	return slices.Contains([]string{"a byte more", "100 bytes more", "header says one less", "header says 16 MiB", "twice in one"}, name)
}

// Every message of the client with other content and other lengths. What is
// still served must be what was to be: some bytes are free.
func TestS24_ClientMessagesMalformed(t *testing.T) {
	sizes := map[byte]int{MsgClientHello: 47, MsgCertificate: 1500, MsgClientKeyExchange: 140, MsgCertificateVerify: 76, MsgFinished: 16}
	bubbles(t, func(t *testing.T, f face) {
		cfg := f.server(t)
		for kind, size := range sizes {
			if !f.mutual && (kind == MsgCertificate || kind == MsgCertificateVerify) {
				continue
			}
			if isECDHE(f.suite) && kind == MsgClientKeyExchange {
				size = 73
			}
			for name, spoil := range spoils(size) {
				c, done := inMemory(f, cfg)
				c.Edit = func(k byte, m []byte) [][]byte {
					if k == kind {
						m = spoil(m)
					}
					return [][]byte{m}
				}
				err := c.Handshake()
				a, o := over(t, &c.Peer, done)
				switch {
				case o.served() && (mustRefuse(name) || kind == MsgFinished && name != "twice in one"):
					t.Errorf("message %d, %s: served", kind, name)
				case o.served() && (o.state.CipherSuite != f.suite || (o.state.PeerSign != nil) != f.mutual):
					t.Errorf("message %d, %s: served with %+v", kind, name, o.state)
				case !o.served() && err == nil:
					t.Errorf("message %d, %s: ours took what theirs did not finish: %v", kind, name, o.handshake)
				case !o.served() && mustRefuse(name) && a == nil && err == nil:
					t.Errorf("message %d, %s: no alert: %v", kind, name, o.handshake)
				}
			}
		}
	})
}

// Every message of the server with other content and other lengths.
func TestS24_ServerMessagesMalformed(t *testing.T) {
	sizes := map[byte]int{
		MsgServerHello: 42, MsgCertificate: 1500, MsgServerKeyExchange: 76, MsgCertificateRequest: 8, MsgServerHelloDone: 4, MsgFinished: 16,
	}
	bubbles(t, func(t *testing.T, f face) {
		cfg := f.client(t)
		for kind, size := range sizes {
			if !f.mutual && kind == MsgCertificateRequest {
				continue
			}
			if isECDHE(f.suite) && kind == MsgServerKeyExchange {
				size = 145
			}
			for name, spoil := range spoils(size) {
				if kind == MsgServerHelloDone && name == "header says one less" {
					continue // it has none to lose
				}
				s, done := beforeInMemory(f, cfg)
				s.Edit = func(k byte, m []byte) [][]byte {
					if k == kind {
						m = spoil(m)
					}
					return [][]byte{m}
				}
				err := s.Handshake()
				_, o := over(t, &s.Peer, done)
				switch {
				case o.served() && (mustRefuse(name) && name != "twice in one" || kind == MsgFinished && name != "twice in one"):
					t.Errorf("message %d, %s: served", kind, name)
				case o.served() && o.state.CipherSuite != f.suite:
					t.Errorf("message %d, %s: served with %+v", kind, name, o.state)
				case o.served() && kind == MsgServerKeyExchange:
					t.Errorf("message %d, %s: taken though the signature does not fit", kind, name)
				case !o.served() && err == nil && kind != MsgFinished:
					t.Errorf("message %d, %s: ours took what theirs did not finish: %v", kind, name, o.handshake)
				}
			}
		}
	})
}

// Someone on the way flips one bit: nobody is served, whichever it is.
func TestS24_EveryBitOfTheClientsRecords(t *testing.T) {
	bubbles(t, func(t *testing.T, f face) {
		cfg := f.server(t)
		flips(t, func(wire func([]byte) []byte) (*Peer, <-chan outcome, error) {
			c, done := inMemory(f, cfg)
			c.Wire = wire
			return &c.Peer, done, c.Handshake()
		}, false)
	})
}

func TestS24_EveryBitOfTheServersRecords(t *testing.T) {
	bubbles(t, func(t *testing.T, f face) {
		cfg := f.client(t)
		flips(t, func(wire func([]byte) []byte) (*Peer, <-chan outcome, error) {
			s, done := beforeInMemory(f, cfg)
			s.Wire = wire
			return &s.Peer, done, s.Handshake()
		}, true)
	})
}

func flips(t *testing.T, handshake func(func([]byte) []byte) (*Peer, <-chan outcome, error), server bool) {
	var records [][]byte
	p, done, err := handshake(func(raw []byte) []byte {
		records = append(records, bytes.Clone(raw))
		return raw
	})
	check(t, err, "genuine")
	over(t, p, done)
	for n, rec := range records {
		last := n == len(records)-1 // Finished, under the new keys
		for _, bit := range sample(8*len(rec), 20) {
			i := -1
			p, done, err := handshake(func(raw []byte) []byte {
				if i++; i != n {
					return raw
				}
				raw = bytes.Clone(raw)
				raw[min(bit/8, len(raw)-1)] ^= 1 << (bit % 8) // a signature may be shorter
				return raw
			})
			a, o := over(t, p, done)
			errors.As(err, &a) // the handshake met it
			if o.served() {
				t.Fatalf("record %d, bit %d of %d: served (ours: %v)", n, bit, 8*len(rec), err)
			}
			if last && bit >= 40 && !server && (a == nil || a.Code != 20 || a.Level != 2) {
				// The server's alert after Finished; ours of a client comes encrypted,
				// and is read by what it knows, too.
				t.Fatalf("Finished, bit %d: %v, want bad_record_mac (%v)", bit, a, o.handshake)
			}
		}
	}
}

// One bit of a data record: bad_record_mac, and nothing is handed up.
func TestS24_EveryBitOfData(t *testing.T) {
	bubbles(t, func(t *testing.T, f face) {
		server, client := f.server(t), f.client(t)
		for _, bit := range sample(8*(5+8+33+32), 25) {
			for _, side := range []string{"server", "client"} {
				var p *Peer
				var done <-chan outcome
				if side == "server" {
					c, d := inMemory(f, server)
					check(t, c.Handshake(), "handshake")
					p, done = &c.Peer, d
				} else {
					s, d := beforeInMemory(f, client)
					check(t, s.Handshake(), "handshake")
					p, done = &s.Peer, d
				}
				size := 0
				p.Wire = func(raw []byte) []byte {
					size = len(raw)
					raw = bytes.Clone(raw)
					raw[min(bit/8, size-1)] ^= 1 << (bit % 8)
					return raw
				}
				p.Send(TypeData, make([]byte, 33))
				p.Wire = nil
				if bit/8 == 3 || bit/8 == 4 {
					a, o := over(t, p, done) // the length: more may be waited for
					if o.after == nil {
						t.Errorf("%s, bit %d: %v, %v", side, bit, a, o.after)
					}
					continue
				}
				if a := refused(t, p, done); bit >= 40 && a.Code != 20 {
					t.Errorf("%s, bit %d: %v, want bad_record_mac", side, bit, a)
				}
			}
		}
	})
}
