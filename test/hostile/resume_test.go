package hostile

import (
	"bytes"
	"testing"

	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// resumable returns a server's configuration and a session of a full handshake
// with it.
func resumable(t *testing.T, f face, ticket bool) (*tlcp.Config, *Saved) {
	t.Helper()
	cfg := f.server(t)
	cfg.SessionCache = tlcp.NewLRUSessionCache(0)
	if ticket {
		cfg.TicketKeys = [][]byte{random(16)}
	}
	c, done := against(t, f, cfg)
	if ticket {
		c.Extensions = []Extension{Ticket(nil)}
	}
	check(t, c.Handshake(), "full")
	served(t, &c.Peer, done)
	s := c.Saved()
	if ticket {
		s.ID = random(32)
	}
	return cfg, s
}

// A session that is not this one, or not as it was given, is none: a full
// handshake follows, with all that it demands.
func TestS24_ForeignSessions(t *testing.T) {
	each(t, func(t *testing.T, f face) {
		for _, ticket := range []bool{false, true} {
			cfg, good := resumable(t, f, ticket)
			_, other := resumable(t, f, ticket)
			spoils := []func(*Saved){
				func(s *Saved) { *s = *other },
				func(s *Saved) { s.ID = s.ID[:len(s.ID)-1] },
				func(s *Saved) { s.ID = []byte{0} },
				func(s *Saved) { s.ID[0] ^= 1 },
			}
			if ticket {
				spoils = spoils[:1]
				for i := range sample(len(good.Ticket), 20) {
					spoils = append(spoils, func(s *Saved) { s.Ticket[i] ^= 0x10 })
				}
				spoils = append(spoils, func(s *Saved) { s.Ticket = s.Ticket[1:] }, func(s *Saved) { s.Ticket = append(s.Ticket, 0) })
			}
			for i, spoil := range spoils {
				s := &Saved{ID: bytes.Clone(good.ID), Ticket: bytes.Clone(good.Ticket), Master: good.Master, Suite: good.Suite}
				spoil(s)
				c, done := against(t, f, cfg)
				c.Offer = s
				if err := c.Handshake(); err != nil || c.Resumed {
					t.Fatalf("ticket %v, spoil %d: resumed %v, %v", ticket, i, c.Resumed, err)
				}
				if o := served(t, &c.Peer, done); o.state.DidResume || (o.state.PeerSign != nil) != f.mutual {
					t.Errorf("ticket %v, spoil %d: %+v", ticket, i, o.state)
				}
			}
		}
	})
}

// Who knows a session's identifier but not its secret does not get in.
func TestS24_StolenIdentifier(t *testing.T) {
	each(t, func(t *testing.T, f face) {
		for _, ticket := range []bool{false, true} {
			cfg, good := resumable(t, f, ticket)
			c, done := against(t, f, cfg)
			c.Offer = &Saved{ID: good.ID, Ticket: good.Ticket, Suite: good.Suite, Master: random(48)}
			check(t, c.Do(SendHello, HearHello), "hello")
			if !c.Resumed {
				t.Fatal("not resumed")
			}
			c.record() // ChangeCipherSpec
			c.record() // Finished, which does not open for us
			c.Do(CCS, Finished)
			c.CloseWrite()
			c.Deadline(patience)
			c.End()
			if o := result(t, done); o.served() {
				t.Error("served")
			}
		}
	})
}

// A session is resumed with its own suite only: not where the client no longer
// offers it, nor where the server no longer serves it.
func TestS24_OtherSuiteAtResumption(t *testing.T) {
	for _, f := range faces {
		for _, ticket := range []bool{false, true} {
			all := f.server(t)
			cfg, good := resumable(t, f, ticket)
			both := cfg.Clone()
			both.CipherSuites = suites
			if !f.mutual {
				both.CipherSuites = []uint16{ECCGCM, ECCCBC}
			}
			for _, suite := range both.CipherSuites {
				if suite == f.suite {
					continue
				}
				c, done := against(t, face{suite, f.mutual}, both)
				c.Offer = good
				check(t, c.Handshake(), "handshake")
				if o := served(t, &c.Peer, done); c.Resumed || o.state.DidResume || o.state.CipherSuite != suite {
					t.Errorf("%v, ticket %v: resumed with suite %04x", f, ticket, suite)
				}
				only := both.Clone()
				only.CipherSuites = []uint16{suite}
				c, done = against(t, face{suite, f.mutual}, only)
				c.Suites, c.Offer = []uint16{f.suite, suite}, good
				check(t, c.Handshake(), "handshake")
				if o := served(t, &c.Peer, done); c.Resumed || o.state.CipherSuite != suite {
					t.Errorf("%v, ticket %v: a suite that is switched off was resumed", f, ticket)
				}
			}
			_ = all
		}
	}
}

// A server that resumes what the client did not offer, with another suite, or
// without the secret.
func TestS24_ServersThatResumeWrongly(t *testing.T) {
	each(t, func(t *testing.T, f face) {
		full := func() (*tlcp.Config, *Saved) {
			cfg := f.client(t)
			cfg.SessionCache = tlcp.NewLRUSessionCache(0)
			s, done := before(t, f, cfg)
			s.NewID = random(32)
			check(t, s.Handshake(), "full")
			served(t, &s.Peer, done)
			return cfg, s.Keep()
		}
		cfg, kept := full()
		wrong := *kept
		wrong.Master = random(48)
		s, done := before(t, f, cfg)
		s.Resume = map[string]*Saved{string(kept.ID): &wrong}
		check(t, s.Do(HearClient, SayHello, SayCCS, SayFinished), "resume")
		if a := refusedEarly(t, &s.Peer, done); a.Code != 20 {
			t.Errorf("without the secret: %v, want bad_record_mac", a)
		}

		cfg, kept = full()
		both := cfg.Clone()
		both.CipherSuites = suites
		if !f.mutual {
			both.CipherSuites = []uint16{ECCGCM, ECCCBC}
		}
		for _, suite := range both.CipherSuites {
			if suite == f.suite {
				continue
			}
			s, done = before(t, f, both)
			s.Resume, s.Choose = map[string]*Saved{string(kept.ID): kept}, suite
			check(t, s.Do(HearClient, SayHello, SayCCS, SayFinished), "resume")
			if !s.Resumed {
				result(t, done)
				break // the client forgot the session after the first
			}
			if a := refusedEarly(t, &s.Peer, done); a.Code != 47 && a.Code != 40 {
				t.Errorf("with suite %04x: %v", suite, a)
			}
		}

		// Nothing was offered, and the answer is ChangeCipherSpec.
		s, done = before(t, f, f.client(t))
		s.NewID = random(32)
		check(t, s.Do(HearClient, SayHello), "hello")
		s.Master = random(48)
		s.derive()
		check(t, s.Do(SayCCS, SayFinished), "resume")
		refusedEarly(t, &s.Peer, done)
	})
}

// A session outlives neither its certificates' revocation nor the demands of
// the face.
func TestS24_RevokedAtResumption(t *testing.T) {
	for _, f := range faces {
		if !f.mutual {
			continue
		}
		for _, ticket := range []bool{false, true} {
			cfg, good := resumable(t, f, ticket)
			lists := new(tlcp.CRLs)
			check(t, lists.Add(world().sub.CRL(world().client.Sign.Cert), world().sub.Cert), "add list")
			after := cfg.Clone()
			after.CheckRevocation = lists.Check
			c, done := against(t, f, after)
			c.Offer = good
			if c.Do(SendHello, HearHello) == nil && c.Resumed {
				t.Fatalf("%v, ticket %v: resumed", f, ticket)
			}
			c.Do(HearFlight)
			c.Do(c.Rest()...)
			if a, o := over(t, &c.Peer, done); o.served() || a == nil || a.Code != 44 {
				t.Errorf("%v, ticket %v: %v, %v", f, ticket, a, o.handshake)
			}
		}
	}
}
