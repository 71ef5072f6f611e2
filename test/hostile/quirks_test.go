package hostile

import (
	"slices"
	"testing"

	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// Habits of TLCP clients that are about: each must be served.
func TestS24_ClientHabits(t *testing.T) {
	tongsuo := []uint16{0xe053, 0xe051, 0xe05a, 0xe059, 0xe013, 0xe011, 0xe01c, 0xe019, 0x00ff}
	habits := map[string]func(c *Client, f face){
		"no extensions":          func(*Client, face) {},
		"block of no extensions": func(c *Client, _ face) { c.EmptyExtensions = true },
		"Tongsuo": func(c *Client, f face) {
			c.Suites = tongsuo
			c.Extensions = []Extension{SNI(Host), Ticket(nil), ALPN("h2", "http/1.1")}
		},
		"gotlcp": func(c *Client, f face) {
			c.Extensions = []Extension{SNI(Host), Groups(41), SignatureAlgorithms(0x0704), ALPN("http/1.1")}
		},
		"GmSSL":                      func(c *Client, f face) { c.Extensions = []Extension{SNI(Host), SignatureAlgorithms(0x0704, 0x0708)} },
		"other signature algorithms": func(c *Client, _ face) { c.Extensions = []Extension{SignatureAlgorithms(0x0708)} },
		"trusted authorities, stapling": func(c *Client, _ face) {
			c.Extensions = []Extension{{3, []byte{0, 0}}, {5, []byte{1, 0, 0, 0, 0}}, {66, []byte("client")}}
		},
		"extensions of TLS 1.2 and 1.3": func(c *Client, _ face) {
			c.Extensions = []Extension{{0x0a0a, nil}, {22, nil}, {23, nil}, {0xff01, []byte{0}}, {43, []byte{2, 3, 4}}, {51, []byte{0, 0}}, {11, []byte{1, 0}}}
		},
		"name in capitals":   func(c *Client, _ face) { c.Extensions = []Extension{SNI("GW.Example.ORG")} },
		"unknown name":       func(c *Client, _ face) { c.Extensions = []Extension{SNI("other.example")} },
		"signalling suites":  func(c *Client, f face) { c.Suites = []uint16{0x00ff, 0x5600, 0x0a0a, f.suite, 0x1301} },
		"identifier unknown": func(c *Client, f face) { c.Offer = &Saved{ID: random(32), Master: random(48), Suite: f.suite} },
		"short identifier":   func(c *Client, f face) { c.Offer = &Saved{ID: random(1), Master: random(48), Suite: f.suite} },
		"foreign ticket": func(c *Client, f face) {
			c.Offer = &Saved{ID: random(32), Ticket: random(300), Master: random(48), Suite: f.suite}
		},
		"compressions":   func(c *Client, _ face) { c.Compressions = []byte{1, 64, 0} },
		"joined":         func(c *Client, _ face) { c.Join = true },
		"byte by byte":   func(c *Client, _ face) { c.Frame = Bytes(1) },
		"joined and cut": func(c *Client, _ face) { c.Join = true; c.Frame = Bytes(7) },
		"random nonces":  func(c *Client, _ face) { c.Nonce = func(uint64) []byte { return random(8) } },
		"nonces from one": func(c *Client, _ face) {
			c.Nonce = func(seq uint64) []byte { return []byte{255, 255, 255, 255, 255, 255, 255, byte(255 - seq)} }
		},
		"padding at its most":  func(c *Client, _ face) { c.Pad = 14 },
		"parameters as vector": func(c *Client, _ face) { c.Vector = true },
		"zeros after the ciphertext": func(c *Client, _ face) {
			c.Ciphertext = func(b []byte) []byte { return append(b, 0, 0, 0) }
		},
		"root in the list": func(c *Client, f face) { c.Chain = append(world().client.List(), world().root.Cert.Raw) },
		"encryption cert last": func(c *Client, f face) {
			l := world().client.List()
			c.Chain = [][]byte{l[0], l[2], l[1]}
		},
		"a warning": func(c *Client, _ face) {
			c.Edit = func(kind byte, msg []byte) [][]byte {
				if kind == MsgClientKeyExchange {
					c.Send(TypeAlert, []byte{1, 112})
				}
				return [][]byte{msg}
			}
		},
	}
	for name, habit := range habits {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, f face) {
				cfg := f.server(t)
				cfg.NextProtos = []string{"http/1.1"}
				c, done := against(t, f, cfg)
				habit(c, f)
				check(t, c.Handshake(), "handshake")
				for _, id := range []uint16{22, 23, 0xff01, 43, 51, 0x0a0a} {
					if _, ok := c.ServerHello.Get(id); ok {
						t.Errorf("extension %d was answered", id)
					}
				}
				if o := served(t, &c.Peer, done); o.state.CipherSuite != f.suite || c.Resumed {
					t.Errorf("suite %04x, resumed %v", o.state.CipherSuite, c.Resumed)
				}
			})
		})
	}
}

// A client of an ECC suite may send its signing certificate alone, as GmSSL's
// does, with or without its authority.
func TestS24_ClientWithOneCertificate(t *testing.T) {
	id := world().root.Identity()
	for _, list := range [][][]byte{{id.Sign.Cert.Raw}, {id.Sign.Cert.Raw, world().root.Cert.Raw}} {
		for _, suite := range []uint16{ECCGCM, ECCCBC, ECDHEGCM, ECDHECBC} {
			f := face{suite, true}
			c, done := against(t, f, f.server(t))
			c.Own, c.Chain = id, list
			err := c.Handshake()
			if isECDHE(suite) {
				if err == nil {
					t.Errorf("%v: served without an encryption certificate", f)
				}
				continue
			}
			check(t, err, f.String())
			served(t, &c.Peer, done)
		}
	}
}

// Habits of TLCP servers that are about: each must be understood.
func TestS24_ServerHabits(t *testing.T) {
	habits := map[string]func(s *Server, f face){
		"no extensions":          func(*Server, face) {},
		"block of no extensions": func(s *Server, _ face) { s.EmptyExtensions = true },
		"name acknowledged":      func(s *Server, _ face) { s.Extensions = []Extension{{0, nil}} },
		"protocol":               func(s *Server, _ face) { s.Extensions = []Extension{ALPN("http/1.1")} },
		"identifier":             func(s *Server, _ face) { s.NewID = random(32) },
		"root in the list":       func(s *Server, _ face) { s.Chain = append(world().server.List(), world().root.Cert.Raw) },
		"encryption cert last":   func(s *Server, _ face) { l := world().server.List(); s.Chain = [][]byte{l[0], l[2], l[1]} },
		"joined":                 func(s *Server, _ face) { s.Join = true },
		"byte by byte":           func(s *Server, _ face) { s.Frame = Bytes(1) },
		"joined and cut":         func(s *Server, _ face) { s.Join = true; s.Frame = Bytes(100) },
		"random nonces":          func(s *Server, _ face) { s.Nonce = func(uint64) []byte { return random(8) } },
		"padding at its most":    func(s *Server, _ face) { s.Pad = 14 },
		"types of Tongsuo":       func(s *Server, _ face) { s.Ask = CertificateRequest([]byte{1, 2, 64}) },
		"type ibc beside ecdsa":  func(s *Server, _ face) { s.Ask = CertificateRequest([]byte{80, 64}, world().root.Cert.RawSubject) },
		"many authorities": func(s *Server, _ face) {
			s.Ask = CertificateRequest([]byte{64}, slices.Repeat([][]byte{world().sub.Cert.RawSubject, world().root.Cert.RawSubject}, 100)...)
		},
		"authority of the leaf": func(s *Server, _ face) { s.Ask = CertificateRequest([]byte{64}, world().sub.Cert.RawSubject) },
		"a warning": func(s *Server, _ face) {
			s.Edit = func(kind byte, msg []byte) [][]byte {
				if kind == MsgServerKeyExchange {
					s.Send(TypeAlert, []byte{1, 112})
				}
				return [][]byte{msg}
			}
		},
	}
	for name, habit := range habits {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, f face) {
				cfg := f.client(t)
				cfg.NextProtos = []string{"h2", "http/1.1"}
				s, done := before(t, f, cfg)
				habit(s, f)
				if s.Ask != nil && !f.mutual {
					s.Request = true // to a client that has none to give
				}
				check(t, s.Handshake(), "handshake")
				if s.Verified != f.mutual {
					t.Errorf("the client proved itself: %v", s.Verified)
				}
				served(t, &s.Peer, done)
			})
		})
	}
}

// The ECDHE parameters of our client, in both forms.
func TestS24_ClientKeyExchangeForms(t *testing.T) {
	for _, vector := range []bool{false, true} {
		f := face{ECDHEGCM, true}
		cfg := f.client(t)
		cfg.ECDHEVector = vector
		s, done := before(t, f, cfg)
		check(t, s.Handshake(), "handshake")
		if s.HearVector != vector {
			t.Errorf("vector %v, want %v", s.HearVector, vector)
		}
		served(t, &s.Peer, done)
	}
}

// Tickets in the forms in which servers give them.
func TestS24_ServerTickets(t *testing.T) {
	each(t, func(t *testing.T, f face) {
		for name, c := range map[string]struct {
			cache, offer, announce bool
			ticket                 []byte
			ok                     bool
		}{
			"given and announced": {true, true, true, random(100), true},
			"empty":               {true, true, true, []byte{}, true},
			"huge":                {true, true, true, random(60000), true},
			"not announced":       {true, true, false, random(100), false},
			"not asked for":       {false, false, true, random(100), false},
		} {
			cfg := f.client(t)
			if cfg.OfferTickets = c.offer; c.cache {
				cfg.SessionCache = tlcp.NewLRUSessionCache(0)
			}
			s, done := before(t, f, cfg)
			if s.GiveTicket = c.ticket; len(c.ticket) > 16384 {
				s.Frame = Bytes(16384)
			}
			if c.announce {
				s.Extensions = []Extension{Ticket(nil)}
			}
			if err := s.Handshake(); err == nil && c.ok {
				served(t, &s.Peer, done)
			} else if o := result(t, done); c.ok || o.served() {
				t.Errorf("%s: %v, %v", name, err, o.handshake)
			}
		}
	})
}

// Data in records of unusual forms: one byte first as TLS 1.0's clients do,
// empty ones between.
func TestS24_DataHabits(t *testing.T) {
	each(t, func(t *testing.T, f face) {
		c, done := against(t, f, f.server(t))
		check(t, c.Handshake(), "handshake")
		for range 20 {
			c.Send(TypeData, nil)
			check(t, c.Echo([]byte{7}), "one byte")
			c.Send(TypeData, nil)
			c.Send(TypeData, nil)
			check(t, c.Echo(random(16384)), "the rest")
		}
		served(t, &c.Peer, done)
	})
}
