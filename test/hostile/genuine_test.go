package hostile

import (
	"bytes"
	"slices"
	"testing"

	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// The two stacks understand one another with every suite, in both roles.
func TestS24_GenuineHandshakes(t *testing.T) {
	each(t, func(t *testing.T, f face) {
		cfg := f.server(t)
		var enc []byte
		cfg.VerifyConnection = func(st tlcp.ConnectionState) error {
			if st.PeerEnc != nil {
				enc = st.PeerEnc.Raw
			}
			return nil
		}
		c, done := against(t, f, cfg)
		c.Extensions = []Extension{SNI(Host)}
		check(t, c.Handshake(), "our client")
		o := served(t, &c.Peer, done)
		if o.state.CipherSuite != f.suite || o.state.ServerName != Host || (o.state.PeerSign != nil) != f.mutual {
			t.Errorf("the server's state is %+v", o.state)
		}
		if f.mutual && !bytes.Equal(enc, world().client.Enc.Cert.Raw) {
			t.Error("the server took another encryption certificate")
		}

		s, done := before(t, f, f.client(t))
		check(t, s.Handshake(), "our server")
		if f.mutual && !s.Verified {
			t.Error("the client did not prove itself")
		}
		if o := served(t, &s.Peer, done); o.state.CipherSuite != f.suite {
			t.Errorf("the client's state is %+v", o.state)
		}
	})
}

// Resumption by identifier and by ticket, in both roles.
func TestS24_GenuineResumption(t *testing.T) {
	each(t, func(t *testing.T, f face) {
		t.Run("identifier at the server", func(t *testing.T) {
			cfg := f.server(t)
			cfg.SessionCache = tlcp.NewLRUSessionCache(0)
			c, done := against(t, f, cfg)
			check(t, c.Handshake(), "full")
			served(t, &c.Peer, done)
			for range 2 {
				d, done := against(t, f, cfg)
				d.Offer = c.Saved()
				check(t, d.Handshake(), "resumed")
				o := served(t, &d.Peer, done)
				if !d.Resumed || !o.state.DidResume || (o.state.PeerSign != nil) != f.mutual {
					t.Errorf("resumed: ours %v, theirs %+v", d.Resumed, o.state)
				}
			}
		})
		t.Run("ticket at the server", func(t *testing.T) {
			cfg := f.server(t)
			cfg.TicketKeys = [][]byte{random(16)}
			c, done := against(t, f, cfg)
			c.Extensions = []Extension{Ticket(nil)}
			check(t, c.Handshake(), "full")
			served(t, &c.Peer, done)
			if len(c.Ticket) == 0 {
				t.Fatal("no ticket")
			}
			d, done := against(t, f, cfg)
			d.Offer = c.Saved()
			d.Offer.ID = random(32) // tells a resumption (RFC 5077 §3.4)
			check(t, d.Handshake(), "resumed")
			if served(t, &d.Peer, done); !d.Resumed {
				t.Error("not resumed")
			}
		})
		t.Run("identifier at the client", func(t *testing.T) {
			for _, n := range []int{1, 16, 32} {
				cfg := f.client(t)
				cfg.SessionCache = tlcp.NewLRUSessionCache(0)
				s, done := before(t, f, cfg)
				s.NewID = random(n)
				check(t, s.Handshake(), "full")
				served(t, &s.Peer, done)
				r, done := before(t, f, cfg)
				r.Resume = map[string]*Saved{string(s.NewID): s.Keep()}
				check(t, r.Handshake(), "resumed")
				if o := served(t, &r.Peer, done); !r.Resumed || !o.state.DidResume {
					t.Errorf("%d bytes: resumed: ours %v, theirs %v", n, r.Resumed, o.state.DidResume)
				}
			}
		})
		t.Run("ticket at the client", func(t *testing.T) {
			cfg := f.client(t)
			cfg.SessionCache, cfg.OfferTickets = tlcp.NewLRUSessionCache(0), true
			s, done := before(t, f, cfg)
			s.Extensions, s.GiveTicket = []Extension{Ticket(nil)}, random(200)
			check(t, s.Handshake(), "full")
			served(t, &s.Peer, done)
			r, done := before(t, f, cfg)
			r.Resume = map[string]*Saved{string(s.GiveTicket): s.Keep()}
			check(t, r.Handshake(), "resumed")
			if o := served(t, &r.Peer, done); !r.Resumed || !o.state.DidResume {
				t.Errorf("resumed: ours %v, theirs %v", r.Resumed, o.state.DidResume)
			}
		})
	})
}

// Both sides without a preference of ours: the strongest suite is taken, and
// the server goes by its own order.
func TestS24_StrongestSuite(t *testing.T) {
	all := suites
	cfg := face{0, true}.server(t)
	cfg.CipherSuites = nil
	for _, offer := range [][]uint16{all, {ECCCBC, ECCGCM, ECDHECBC, ECDHEGCM}} {
		c, done := against(t, face{0, true}, cfg)
		c.Suites = offer
		check(t, c.Handshake(), "handshake")
		served(t, &c.Peer, done)
		if c.Suite != ECDHEGCM {
			t.Errorf("offered %04x: suite %04x", offer, c.Suite)
		}
	}
	one := face{0, false}.server(t)
	one.CipherSuites = nil
	c, done := against(t, face{}, one)
	c.Suites = slices.Clone(all)
	slices.Reverse(c.Suites)
	check(t, c.Handshake(), "handshake")
	served(t, &c.Peer, done)
	if c.Suite != ECCGCM {
		t.Errorf("a server that asks for no certificate chose %04x", c.Suite)
	}
}
