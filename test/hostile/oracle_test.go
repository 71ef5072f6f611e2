package hostile

import (
	"slices"
	"testing"
	"time"
)

// A record of CBC may be wrong in its padding, its MAC or its length: who
// sends it learns the same each time. That the number of SM3 compressions is
// the same, too, crypto/tlcp counts in its own tests.
func TestS23_CBCGivesOneAnswer(t *testing.T) {
	spoils := map[string]func([]byte) []byte{
		"padding length too long":   func(b []byte) []byte { b[len(b)-1] = 255; return b },
		"padding length all":        func(b []byte) []byte { b[len(b)-1] = byte(min(255, len(b)-1)); return b },
		"padding length one more":   func(b []byte) []byte { b[len(b)-1]++; return b },
		"padding length one less":   func(b []byte) []byte { b[len(b)-1]--; return b },
		"padding length zero":       func(b []byte) []byte { b[len(b)-1] = 0; return b },
		"padding byte":              func(b []byte) []byte { b[len(b)-2] ^= 1; return b },
		"first padding byte":        func(b []byte) []byte { b[len(b)-1-int(b[len(b)-1])] ^= 1; return b },
		"MAC's first byte":          func(b []byte) []byte { b[len(b)-1-int(b[len(b)-1])-32] ^= 1; return b },
		"MAC's last byte":           func(b []byte) []byte { b[len(b)-1-int(b[len(b)-1])-1] ^= 1; return b },
		"MAC and padding":           func(b []byte) []byte { b[len(b)-2] ^= 1; b[len(b)-40] ^= 1; return b },
		"content":                   func(b []byte) []byte { b[0] ^= 1; return b },
		"a block less":              func(b []byte) []byte { return b[:len(b)-16] },
		"a block less at the front": func(b []byte) []byte { return b[16:] },
		"a block more":              func(b []byte) []byte { return append(b, random(16)...) },
		"one block":                 func(b []byte) []byte { return b[:16] },
		"zeros":                     func(b []byte) []byte { return make([]byte, len(b)) },
		"only padding":              func(b []byte) []byte { return slices.Repeat([]byte{byte(len(b) - 1)}, len(b)) },
		"random":                    func(b []byte) []byte { return random(len(b)) },
	}
	for _, suite := range []uint16{ECCCBC, ECDHECBC} {
		f := face{suite, isECDHE(suite)}
		cfg := f.server(t)
		for _, n := range []int{17, 46, 192, 254, 4096} {
			for _, pad := range []int{0, 1, 12} {
				for name, spoil := range spoils {
					c, done := against(t, f, cfg)
					c.Pad = pad
					check(t, c.Handshake(), "handshake")
					c.SpoilCBC(spoil)
					c.Send(TypeData, make([]byte, n))
					if a := refused(t, &c.Peer, done); *a != (Alert{2, 20}) {
						t.Errorf("%s, %d bytes: %v, want bad_record_mac", name, n, a)
					}
				}
			}
		}
	}
}

// The encrypted premaster secret may be wrong in its form, its length or its
// version: who sends it learns the same each time, at the same place.
func TestS24_PremasterGivesOneAnswer(t *testing.T) {
	premaster := func(n int) func(*Client) {
		return func(c *Client) { c.PremasterLength = n }
	}
	spoils := map[string]func(*Client){
		"version of TLS":     func(c *Client) { c.PremasterVersion = 0x0303 },
		"version one more":   func(c *Client) { c.PremasterVersion = 0x0102 },
		"version exchanged":  func(c *Client) { c.PremasterVersion = 0x1010 },
		"one byte less":      premaster(47),
		"one byte more":      premaster(49),
		"one byte":           premaster(1),
		"16 KiB":             premaster(16000),
		"hash altered":       func(c *Client) { c.Ciphertext = func(b []byte) []byte { b[len(b)-60] ^= 1; return b } },
		"ciphertext altered": func(c *Client) { c.Ciphertext = func(b []byte) []byte { b[len(b)-1] ^= 1; return b } },
		"point altered":      func(c *Client) { c.Ciphertext = func(b []byte) []byte { b[20] ^= 1; return b } },
		"no sequence":        func(c *Client) { c.Ciphertext = func(b []byte) []byte { b[0] = 4; return b } },
		"garbage":            func(c *Client) { c.Ciphertext = func(b []byte) []byte { return random(len(b)) } },
		"empty":              func(c *Client) { c.Ciphertext = func(b []byte) []byte { return nil } },
		"cut":                func(c *Client) { c.Ciphertext = func(b []byte) []byte { return b[:len(b)-1] } },
		"something behind":   func(c *Client) { c.Ciphertext = func(b []byte) []byte { return append(b, 0, 0, 1) } },
		"to somebody else": func(c *Client) {
			c.Ciphertext = func([]byte) []byte { return c.encrypt(&NewKey().PublicKey, random(48)) }
		},
	}
	for _, f := range faces {
		if isECDHE(f.suite) {
			continue
		}
		for name, spoil := range spoils {
			c, done := against(t, f, f.server(t))
			spoil(c)
			check(t, c.Do(SendHello, HearHello, HearFlight), "first flight")
			rest := c.Rest()
			check(t, c.Do(rest[:len(rest)-1]...), "to ChangeCipherSpec")
			// Nothing is said before Finished.
			c.Deadline(20 * time.Millisecond)
			if _, _, err := c.Read(); !isTimeout(err) {
				t.Errorf("%v, %s: %v before Finished", f, name, err)
			}
			c.Deadline(patience)
			check(t, c.Do(Finished), "finished")
			if a := refusedEarly(t, &c.Peer, done); *a != (Alert{2, 20}) {
				t.Errorf("%v, %s: %v, want bad_record_mac", f, name, a)
			}
		}
	}
}

// CertificateVerify by another key, over something else, or of another form.
func TestS24_CertificateVerify(t *testing.T) {
	w := world()
	for _, f := range faces {
		if !f.mutual {
			continue
		}
		for name, body := range map[string]func(c *Client) []byte{
			"another key":                 func(c *Client) []byte { return sign(NewKey(), digest(c.hash)) },
			"the encryption key":          func(c *Client) []byte { return sign(w.client.Enc.Key, digest(c.hash)) },
			"the transcript, not its sum": func(c *Client) []byte { return sign(w.client.Sign.Key, c.hash) },
			"another transcript":          func(c *Client) []byte { return sign(w.client.Sign.Key, digest(c.hash[1:])) },
			"empty":                       func(*Client) []byte { return vec(2, nil) },
			"garbage":                     func(*Client) []byte { return vec(2, random(71)) },
			"zeros":                       func(*Client) []byte { return vec(2, []byte{0x30, 6, 2, 1, 0, 2, 1, 0}) },
			"with its algorithm":          func(c *Client) []byte { return append([]byte{7, 4}, sign(w.client.Sign.Key, digest(c.hash))...) },
		} {
			c, done := against(t, f, f.server(t))
			c.Edit = func(kind byte, m []byte) [][]byte {
				if kind == MsgCertificateVerify {
					m = Message(kind, body(c))
				}
				return [][]byte{m}
			}
			check(t, c.Do(SendHello, HearHello, HearFlight), "first flight")
			check(t, c.Do(c.Rest()...), "second flight")
			if a := refusedEarly(t, &c.Peer, done); a.Code != 51 && a.Code != 50 {
				t.Errorf("%v, %s: %v", f, name, a)
			}
		}
	}
}

// Finished of another content, another length, another side: on both.
func TestS24_Finished(t *testing.T) {
	each(t, func(t *testing.T, f face) {
		var spoils []func(p *Peer, m []byte) []byte
		for i := range 12 {
			spoils = append(spoils, func(_ *Peer, m []byte) []byte { m[4+i] ^= 1; return m })
		}
		for n := range 12 {
			spoils = append(spoils, func(_ *Peer, m []byte) []byte { return Message(MsgFinished, m[4:4+n]) })
		}
		spoils = append(spoils,
			func(_ *Peer, m []byte) []byte { return Message(MsgFinished, append(m[4:], 0)) },
			func(p *Peer, _ []byte) []byte { return Message(MsgFinished, p.finishedBody("server finished")) },
			func(p *Peer, _ []byte) []byte { return Message(MsgFinished, p.finishedBody("client finished")) },
			func(p *Peer, _ []byte) []byte { return Message(MsgFinished, random(12)) },
		)
		for i, spoil := range spoils {
			edit := func(p *Peer) func(byte, []byte) [][]byte {
				return func(kind byte, m []byte) [][]byte {
					if kind == MsgFinished {
						m = spoil(p, m)
					}
					return [][]byte{m}
				}
			}
			if i != len(spoils)-2 {
				c, done := against(t, f, f.server(t))
				c.Edit = edit(&c.Peer)
				check(t, c.Do(SendHello, HearHello, HearFlight), "first flight")
				check(t, c.Do(c.Rest()...), "second flight")
				if a := refusedEarly(t, &c.Peer, done); a.Code != 51 && a.Code != 50 {
					t.Errorf("client's, spoil %d: %v", i, a)
				}
			}
			if i != len(spoils)-3 {
				s, done := before(t, f, f.client(t))
				s.Edit = edit(&s.Peer)
				check(t, s.Do(HearClient, SayHello), "hello")
				check(t, s.Do(append(append(s.Flight(), HearAnswer), s.Last()...)...), "flights")
				if a := refusedEarly(t, &s.Peer, done); a.Code != 51 && a.Code != 50 {
					t.Errorf("server's, spoil %d: %v", i, a)
				}
			}
		}
	})
}
