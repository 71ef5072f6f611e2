package hostile

import (
	"bytes"
	"testing"
	"time"
)

// Records of another version, at each place of the handshake and after it.
func TestS24_VersionsMixed(t *testing.T) {
	versions := []uint16{0x0001, 0x0002, 0x0100, 0x0102, 0x0201, 0x0300, 0x0301, 0x0302, 0x0303, 0x0304, 0xfefd, 0xffff}
	each(t, func(t *testing.T, f face) {
		cfg := f.server(t)
		for _, v := range versions {
			steps := []Step{SendHello, HearHello, HearFlight, Certificate, KeyExchange, Verify, CCS, Finished, HearEnd}
			if !f.mutual {
				steps = []Step{SendHello, HearHello, HearFlight, KeyExchange, CCS, Finished, HearEnd}
			}
			for i, s := range steps {
				if s == HearHello || s == HearFlight {
					continue
				}
				c, done := against(t, f, cfg)
				check(t, c.Do(steps[:i]...), "before")
				c.RecordVersion = v
				if s == HearEnd {
					check(t, c.Do(s), "end")
					c.Send(TypeData, []byte("data"))
				} else {
					check(t, c.Do(s), "step")
				}
				if a := refused(t, &c.Peer, done); a.Code != 70 && a.Code != 20 {
					t.Errorf("record version %04x at %q: %v", v, s, a)
				}
			}
			if v == 0x0102 {
				laterVersion(t, f)
				continue
			}
			c, done := against(t, f, cfg)
			c.HelloVersion = v
			check(t, c.Do(SendHello), "hello")
			if a := refusedEarly(t, &c.Peer, done); a.Code != 70 {
				t.Errorf("hello version %04x: %v, want protocol_version", v, a)
			}
			// The same from a server.
			for place := range 4 {
				s, done := before(t, f, f.client(t))
				check(t, s.Do(HearClient), "hello")
				switch place {
				case 0:
					s.HelloVersion = v
					check(t, s.Do(SayHello), "")
				case 1:
					s.RecordVersion = v
					check(t, s.Do(SayHello), "")
				case 2:
					check(t, s.Do(SayHello), "")
					s.RecordVersion = v
					check(t, s.Do(SayCert), "")
				case 3:
					check(t, s.Do(SayHello), "")
					check(t, s.Do(s.Flight()...), "")
					check(t, s.Do(HearAnswer), "")
					s.RecordVersion = v
					check(t, s.Do(s.Last()...), "")
				}
				if a := refusedEarly(t, &s.Peer, done); a.Code != 70 && a.Code != 20 {
					t.Errorf("server, version %04x at %d: %v", v, place, a)
				}
			}
		}
	})
}

// laterVersion offers a TLCP that is still to come: 0x0101 is agreed on, and the
// premaster secret holds what was offered, so that a version taken down on the
// way is noticed.
func laterVersion(t *testing.T, f face) {
	t.Helper()
	for _, v := range []uint16{0x0102, Version} {
		c, done := against(t, f, f.server(t))
		c.HelloVersion, c.PremasterVersion = 0x0102, v
		check(t, c.Do(SendHello, HearHello, HearFlight), "first flight")
		check(t, c.Do(c.Rest()...), "second flight")
		if v == 0x0102 || isECDHE(f.suite) {
			check(t, c.Do(HearEnd), "end")
			served(t, &c.Peer, done)
		} else if a := refusedEarly(t, &c.Peer, done); a.Code != 20 {
			t.Errorf("premaster of another version: %v, want bad_record_mac", a)
		}
	}
}

// Lengths of records: too long in the clear, too long inside, too short inside.
func TestS24_RecordLengths(t *testing.T) {
	each(t, func(t *testing.T, f face) {
		cfg := f.server(t)
		for _, n := range []int{16385, 18432, 18433, 65535} {
			c, done := against(t, f, cfg)
			c.Write(RawRecord(TypeHandshake, Version, n, Message(MsgClientHello, make([]byte, n-4))))
			if a := refusedEarly(t, &c.Peer, done); n > 18432 && a.Code != 22 {
				t.Errorf("first record of %d bytes: %v, want record_overflow", n, a)
			}
		}
		for _, n := range []int{18433, 40000, 65535} {
			c, done := against(t, f, cfg)
			check(t, c.Handshake(), "handshake")
			c.Write(RawRecord(TypeData, Version, n, make([]byte, n)))
			if a := refused(t, &c.Peer, done); a.Code != 22 {
				t.Errorf("record of %d bytes: %v, want record_overflow", n, a)
			}
		}
		for _, n := range []int{16385, 16640, 17000} {
			c, done := against(t, f, cfg)
			check(t, c.Handshake(), "handshake")
			c.Send(TypeData, make([]byte, n))
			if a := refused(t, &c.Peer, done); a.Code != 22 {
				t.Errorf("content of %d bytes: %v, want record_overflow", n, a)
			}
		}
		for n := range 100 {
			c, done := against(t, f, cfg)
			check(t, c.Handshake(), "handshake")
			c.Write(RawRecord(TypeData, Version, n, random(n)))
			if a := refused(t, &c.Peer, done); a.Code != 20 {
				t.Errorf("fragment of %d bytes: %v, want bad_record_mac", n, a)
			}
		}
	})
}

// What is no TLCP at all.
func TestS24_OtherProtocols(t *testing.T) {
	tls := &Hello{Version: 0x0303, Random: make([]byte, 32), Suites: []uint16{0x1301, 0xE053, 0xE013}, Compressions: []byte{0}}
	for name, b := range map[string][]byte{
		"HTTP":         []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
		"SSLv2":        {0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10, 1, 0, 0x80},
		"TLS":          RawRecord(TypeHandshake, 0x0301, 47+4, Message(MsgClientHello, tls.Client())),
		"zeros":        make([]byte, 100),
		"SSH":          []byte("SSH-2.0-x\r\n"),
		"TLCP heading": RawRecord(TypeHandshake, Version, 4, []byte("GET ")),
		"heartbeat":    RawRecord(24, Version, 3, []byte{1, 64, 0}),
		"an alert":     RawRecord(TypeAlert, Version, 2, []byte{2, 40}),
		"one byte":     {22},
		"nothing":      {},
	} {
		f := face{ECCGCM, false}
		c, done := against(t, f, f.server(t))
		c.Write(b)
		a, o := over(t, &c.Peer, done)
		if o.served() || a == nil && len(b) > 20 && name != "an alert" {
			t.Errorf("%s: %v, %v", name, a, o.handshake)
		}
		s, done := before(t, f, f.client(t))
		check(t, s.Do(HearClient), "hello")
		s.Write(b)
		if _, o := over(t, &s.Peer, done); o.served() {
			t.Errorf("%s to a client: served", name)
		}
	}
}

// A message must not reach over the change of keys: what is left of one when
// ChangeCipherSpec comes was not protected by what follows.
func TestS24_MessageOverTheChangeOfKeys(t *testing.T) {
	each(t, func(t *testing.T, f face) {
		c, done := against(t, f, f.server(t))
		c.Edit = func(kind byte, m []byte) [][]byte {
			if kind == MsgFinished {
				return [][]byte{m[1:]}
			}
			return [][]byte{m}
		}
		check(t, c.Do(SendHello, HearHello, HearFlight), "first flight")
		rest := c.Rest()
		check(t, c.Do(rest[:len(rest)-2]...), "to the keys")
		c.Send(TypeHandshake, []byte{MsgFinished}) // its first byte, in the clear
		check(t, c.Do(rest[len(rest)-2:]...), "the rest")
		if a := refusedEarly(t, &c.Peer, done); a.Code != 10 {
			t.Errorf("server: %v, want unexpected_message", a)
		}

		s, done := before(t, f, f.client(t))
		check(t, s.Do(HearClient, SayHello), "hello")
		check(t, s.Do(append(s.Flight(), HearAnswer)...), "flight")
		s.Send(TypeHandshake, []byte{MsgFinished})
		s.Edit = func(_ byte, m []byte) [][]byte { return [][]byte{m[1:]} }
		check(t, s.Do(s.Last()...), "the rest")
		if a := refusedEarly(t, &s.Peer, done); a.Code != 10 {
			t.Errorf("client: %v, want unexpected_message", a)
		}
	})
}

// Finished in the clear, ChangeCipherSpec of other forms.
func TestS24_ChangeCipherSpec(t *testing.T) {
	each(t, func(t *testing.T, f face) {
		for _, body := range [][]byte{{}, {0}, {2}, {1, 1}, {255}, bytes.Repeat([]byte{1}, 100)} {
			c, done := against(t, f, f.server(t))
			c.CCSBody = body
			check(t, c.Do(SendHello, HearHello, HearFlight), "first flight")
			check(t, c.Do(c.Rest()...), "second flight")
			refusedEarly(t, &c.Peer, done)
			s, done := before(t, f, f.client(t))
			s.CCSBody = body
			check(t, s.Do(HearClient, SayHello), "hello")
			check(t, s.Do(append(append(s.Flight(), HearAnswer), s.Last()...)...), "flights")
			refusedEarly(t, &s.Peer, done)
		}
		c, done := against(t, f, f.server(t))
		check(t, c.Do(SendHello, HearHello, HearFlight), "first flight")
		rest := c.Rest()
		check(t, c.Do(rest[:len(rest)-1]...), "second flight")
		c.out = nil // no cipher
		check(t, c.Do(Finished), "finished")
		if a := refusedEarly(t, &c.Peer, done); a.Code != 20 {
			t.Errorf("Finished in the clear: %v, want bad_record_mac", a)
		}
	})
}

// Floods end: of warnings, of empty records, of HelloRequests, of pieces.
func TestS24_Floods(t *testing.T) {
	floods := map[string]func(p *Peer){
		"warnings":         func(p *Peer) { p.Send(TypeAlert, []byte{1, 112}) },
		"user canceled":    func(p *Peer) { p.Send(TypeAlert, []byte{1, 90}) },
		"no renegotiation": func(p *Peer) { p.Send(TypeAlert, []byte{1, 100}) },
		"empty data":       func(p *Peer) { p.Send(TypeData, nil) },
		"HelloRequests":    func(p *Peer) { p.Send(TypeHandshake, Message(MsgHelloRequest, nil)) },
		"ClientHellos":     func(p *Peer) { p.Send(TypeHandshake, Message(MsgClientHello, make([]byte, 41))) },
		"ChangeCipherSpec": func(p *Peer) { p.Send(TypeCCS, []byte{1}) },
		"pieces":           func(p *Peer) { p.Send(TypeHandshake, []byte{255}) },
		"empty pieces":     func(p *Peer) { p.Send(TypeHandshake, nil) },
		"empty alerts":     func(p *Peer) { p.Send(TypeAlert, nil) },
	}
	for name, flood := range floods {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, f face) {
				for place := range 4 {
					var p *Peer
					var done <-chan outcome
					switch place {
					case 0, 1, 2:
						c, d := against(t, f, f.server(t))
						p, done = &c.Peer, d
						if place == 1 {
							check(t, c.Do(SendHello, HearHello, HearFlight), "first flight")
						} else if place == 2 {
							check(t, c.Handshake(), "handshake")
						}
					case 3:
						s, d := before(t, f, f.client(t))
						p, done = &s.Peer, d
						check(t, s.Handshake(), "handshake")
					}
					// What the kernel takes before the other side looks is not counted.
					start := time.Now()
					for p.writeErr == nil && time.Since(start) < patience {
						flood(p)
					}
					if p.writeErr == nil {
						t.Fatalf("place %d: no end", place)
					}
					refused(t, p, done)
				}
			})
		})
	}
}
