package hostile

import (
	"bytes"
	"slices"
	"testing"

	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// ClientHellos that are wrong in themselves.
func TestS24_ClientHellos(t *testing.T) {
	ext := func(e ...Extension) func(*Client) { return func(c *Client) { c.Extensions = e } }
	body := func(edit func(h *Hello) []byte) func(*Client) {
		return func(c *Client) {
			c.Edit = func(kind byte, _ []byte) [][]byte { return [][]byte{Message(kind, edit(&c.Hello))} }
		}
	}
	list := func(b []byte) func(*Client) { // instead of the extensions
		return body(func(h *Hello) []byte { h.Extensions = nil; return append(h.Client(), b...) })
	}
	for name, c := range map[string]struct {
		spoil  func(*Client)
		alerts []byte
	}{
		"no suites":             {func(c *Client) { c.Suites = nil }, []byte{40, 50, 47}},
		"foreign suites":        {func(c *Client) { c.Suites = []uint16{0xe019, 0xe01c, 0xe015, 0xc02f, 0x1301} }, []byte{40}},
		"another suite of ours": {func(c *Client) { c.Suites = []uint16{ECCCBC} }, []byte{40}},
		"only the signalling":   {func(c *Client) { c.Suites = []uint16{0x00ff} }, []byte{40}},
		"ECDHE without asking":  {func(c *Client) { c.Suites = []uint16{ECDHEGCM, ECDHECBC} }, []byte{40}},
		"fallback signal":       {func(c *Client) { c.Suites = []uint16{0x5600} }, []byte{40, 86}},
		"no compression":        {func(c *Client) { c.Compressions = []byte{} }, []byte{47, 50}},
		"only deflate":          {func(c *Client) { c.Compressions = []byte{1} }, []byte{47, 40}},
		"identifier of 33":      {func(c *Client) { c.Offer = &Saved{ID: random(33)} }, []byte{50, 47}},
		"identifier of 255":     {func(c *Client) { c.Offer = &Saved{ID: random(255)} }, []byte{50, 47}},
		"half a suite": {body(func(h *Hello) []byte {
			return cat(u16(Version), h.Random, []byte{0}, vec(2, []byte{0xe0, 0x53, 0xe0}), []byte{1, 0})
		}), []byte{50, 47}},
		"extension twice":          {ext(SNI(Host), SNI(Host)), []byte{47, 50}},
		"unknown extension twice":  {ext(Extension{9999, nil}, Extension{9999, nil}), []byte{47, 50}},
		"tickets twice":            {ext(Ticket(nil), Ticket(random(10))), []byte{47, 50}},
		"extensions too short":     {list([]byte{0, 9, 0, 0}), []byte{50}},
		"extensions too long":      {list([]byte{0, 0, 0}), []byte{50}},
		"half a header":            {list(vec(2, []byte{0, 0, 0})), []byte{50}},
		"extension over the end":   {list(vec(2, []byte{0, 35, 0, 9, 1})), []byte{50}},
		"empty name extension":     {ext(Extension{0, nil}), []byte{50, 47}},
		"no names":                 {ext(Extension{0, []byte{0, 0}}), []byte{50, 47}},
		"empty name":               {ext(SNI("")), []byte{50, 47, 112}},
		"two names":                {ext(Extension{0, vec(2, append(SNI("a").Data[2:], SNI("b").Data[2:]...))}), []byte{50, 47}},
		"name with NUL":            {ext(SNI("gw.example.org\x00.evil")), []byte{50, 47, 112}},
		"name too short":           {ext(Extension{0, []byte{0, 5, 0, 0, 9, 'a', 'b'}}), []byte{50}},
		"name with more behind":    {ext(Extension{0, append(SNI(Host).Data, 0)}), []byte{50}},
		"empty protocols":          {ext(Extension{16, []byte{0, 0}}), []byte{50, 47}},
		"protocols without length": {ext(Extension{16, nil}), []byte{50}},
		"empty protocol":           {ext(ALPN("")), []byte{50, 47}},
		"protocol over the end":    {ext(Extension{16, []byte{0, 3, 9, 'h', '2'}}), []byte{50}},
		"other protocols":          {ext(ALPN("smtp", "imap")), []byte{120}},
		"name of 16 KiB":           {ext(SNI(string(bytes.Repeat([]byte("a"), 16000)))), []byte{50, 47, 112, 22}},
	} {
		f := face{ECCGCM, false}
		cfg := f.server(t)
		cfg.NextProtos = []string{"h2", "http/1.1"}
		cl, done := against(t, f, cfg)
		cl.Frame = Bytes(16384)
		c.spoil(cl)
		cl.Do(SendHello)

		if a := refusedEarly(t, &cl.Peer, done); !slices.Contains(c.alerts, a.Code) {
			t.Errorf("%s: %v, want one of %v", name, a, c.alerts)
		}
	}
}

// Hellos that are unusual in size: served or refused, never waited for.
func TestS24_HugeClientHellos(t *testing.T) {
	for name, e := range map[string][]Extension{
		"an unknown one of 60 KiB": {{9999, make([]byte, 60000)}},
		"a ticket of 60 KiB":       {Ticket(random(60000))},
		"10,000 protocols":         {ALPN(append(slices.Repeat([]string{"x"}, 10000), "h2")...)},
		"13,000 groups":            {Groups(make([]uint16, 13000)...)},
		"10,000 unknown ones": func() (out []Extension) {
			for i := range 10000 {
				out = append(out, Extension{uint16(1000 + i), nil})
			}
			return out
		}(),
	} {
		f := face{ECCGCM, false}
		cfg := f.server(t)
		cfg.NextProtos, cfg.TicketKeys = []string{"h2", "http/1.1"}, [][]byte{random(16)}
		c, done := against(t, f, cfg)
		c.Extensions, c.Frame = e, Bytes(16384)
		if err := c.Handshake(); err == nil {
			served(t, &c.Peer, done)
		} else if o := result(t, done); o.served() {
			t.Errorf("%s: ours %v, theirs served", name, err)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

// ServerHellos that answer something else than what was offered.
func TestS24_ServerHellos(t *testing.T) {
	ext := func(e ...Extension) func(*Server) { return func(s *Server) { s.Extensions = e } }
	for name, spoil := range map[string]func(*Server){
		"suite not offered":      func(s *Server) { s.Choose, s.Suite = ECCCBC, ECCCBC },
		"suite of TLS":           func(s *Server) { s.Suite = 0xc02f },
		"suite RSA":              func(s *Server) { s.Suite = 0xe019 },
		"suite null":             func(s *Server) { s.Suite = 0 },
		"compression":            func(s *Server) { s.Compression = 1 },
		"identifier of 33":       func(s *Server) { s.NewID = random(33) },
		"unknown extension":      ext(Extension{9999, nil}),
		"extension twice":        ext(Extension{0, nil}, Extension{0, nil}),
		"extended master secret": ext(Extension{23, nil}),
		"encrypt then MAC":       ext(Extension{22, nil}),
		"renegotiation info":     ext(Extension{0xff01, []byte{0}}),
		"ticket":                 ext(Ticket(nil)),
		"name with content":      ext(Extension{0, []byte{1}}),
		"protocol not offered":   ext(ALPN("smtp")),
		"two protocols":          ext(ALPN("h2", "http/1.1")),
		"empty protocol":         ext(ALPN("")),
		"no protocol":            ext(Extension{16, []byte{0, 0}}),
		"supported versions":     ext(Extension{43, []byte{3, 4}}),
		"extensions of 60 KiB":   ext(Extension{9999, make([]byte, 60000)}),
	} {
		f := face{ECCGCM, false}
		cfg := f.client(t)
		cfg.NextProtos = []string{"h2", "http/1.1"}
		s, done := before(t, f, cfg)
		s.Frame = Bytes(16384)
		check(t, s.Do(HearClient), "hello")
		spoil(s)
		s.Do(SayHello)
		refusedEarly(t, &s.Peer, done)
		if t.Failed() {
			t.Fatal(name)
		}
	}
	// An answer to what was not offered at all.
	f := face{ECCGCM, false}
	cfg := f.client(t)
	cfg.NoExtensions = true
	s, done := before(t, f, cfg)
	s.Extensions = []Extension{{0, nil}}
	check(t, s.Do(HearClient, SayHello), "hello")
	refusedEarly(t, &s.Peer, done)
}

// A second handshake on a connection: a ClientHello is refused, a HelloRequest
// is declined and the connection goes on.
func TestS23_NoRenegotiation(t *testing.T) {
	each(t, func(t *testing.T, f face) {
		c, done := against(t, f, f.server(t))
		check(t, c.Handshake(), "handshake")
		check(t, c.Echo([]byte("first")), "echo")
		check(t, c.Do(SendHello), "hello")
		if a := refused(t, &c.Peer, done); a.Code != 10 && a.Code != 100 {
			t.Errorf("second ClientHello: %v", a)
		}
		s, done := before(t, f, f.client(t))
		check(t, s.Handshake(), "handshake")
		s.Send(TypeHandshake, Message(MsgHelloRequest, nil))
		served(t, &s.Peer, done)
		if len(s.Warnings) != 1 || s.Warnings[0] != (Alert{1, 100}) {
			t.Errorf("HelloRequest was answered by %v, want no_renegotiation", s.Warnings)
		}
	})
}

// Alerts of unusual levels and lengths end the connection or are ignored as
// the standard says, and are never answered with more than one.
func TestS24_Alerts(t *testing.T) {
	each(t, func(t *testing.T, f face) {
		for _, alert := range [][]byte{{2, 0}, {1, 0}, {2, 40}, {2, 255}, {0, 0}} {
			c, done := against(t, f, f.server(t))
			check(t, c.Handshake(), "handshake")
			c.Send(TypeAlert, alert)
			if a, err := c.End(); err != nil || a != nil && a.Code != 0 {
				t.Errorf("%v: %v, %v", alert, a, err)
			}
			result(t, done)
		}
		for _, alert := range [][]byte{{}, {2}, {2, 40, 0}, {2, 40, 2, 40}, {0, 40}, {3, 40}, {255, 255}} {
			c, done := against(t, f, f.server(t))
			check(t, c.Handshake(), "handshake")
			c.Send(TypeAlert, alert)
			if a := refused(t, &c.Peer, done); !slices.Contains([]byte{10, 47, 50}, a.Code) {
				t.Errorf("%v: %v", alert, a)
			}
		}
	})
}

// What a peer that is refused learns: an alert, at each suite the same.
func TestS24_KeyExchange(t *testing.T) {
	point := func() []byte { return newEphemeral().PublicKey().Bytes() }
	off := point()
	off[64] ^= 1
	points := map[string][]byte{
		"off the curve": off, "infinity": {0}, "compressed": append([]byte{2}, off[1:33]...), "zeros": append([]byte{4}, make([]byte, 64)...),
		"empty": {}, "short": off[:64], "long": append(bytes.Clone(off), 0), "hybrid": append([]byte{6}, off[1:]...), "field's order": append([]byte{4}, bytes.Repeat([]byte{255}, 64)...),
	}
	for _, suite := range []uint16{ECDHEGCM, ECDHECBC} {
		f := face{suite, true}
		for name, p := range points {
			for _, vector := range []bool{false, true} {
				c, done := against(t, f, f.server(t))
				c.Point, c.Vector = p, vector
				check(t, c.Do(SendHello, HearHello, HearFlight), "first flight")
				c.Do(c.Rest()...)
				if a := refusedEarly(t, &c.Peer, done); !slices.Contains([]byte{47, 50, 40}, a.Code) {
					t.Errorf("client's point, %s: %v", name, a)
				}
			}
			s, done := before(t, f, f.client(t))
			s.Point = p
			check(t, s.Do(HearClient, SayHello), "hello")
			s.Do(s.Flight()...)
			if a := refusedEarly(t, &s.Peer, done); !slices.Contains([]byte{47, 50, 40}, a.Code) {
				t.Errorf("server's point, %s: %v", name, a)
			}
		}
		// Somebody else's point, rightly formed: the keys differ.
		c, done := against(t, f, f.server(t))
		c.Point = point()
		check(t, c.Do(SendHello, HearHello, HearFlight), "first flight")
		c.Do(c.Rest()...)
		if a := refusedEarly(t, &c.Peer, done); a.Code != 20 {
			t.Errorf("another point: %v, want bad_record_mac", a)
		}
	}
	// ServerKeyExchange signed by another key, over another certificate, or
	// for other randoms.
	for _, f := range faces {
		for i := range 3 {
			s, done := before(t, f, f.client(t))
			check(t, s.Do(HearClient, SayHello, SayCert), "hello")
			switch i {
			case 0:
				s.SignWith = NewKey()
			case 1:
				s.SignWith = world().server.Enc.Key
			case 2:
				s.serverRandom = random(32)
			}
			s.Do(s.Flight()[1:]...)
			if a := refusedEarly(t, &s.Peer, done); a.Code != 51 {
				t.Errorf("%v: wrong signature %d: %v, want decrypt_error", f, i, a)
			}
		}
		if !isECDHE(f.suite) {
			s, done := before(t, f, f.client(t))
			s.SignedEnc = world().server.Sign.Cert.Raw
			check(t, s.Do(HearClient, SayHello), "hello")
			s.Do(s.Flight()...)
			if a := refusedEarly(t, &s.Peer, done); a.Code != 51 {
				t.Errorf("%v: another certificate signed: %v", f, a)
			}
		}
	}
}

// The server's certificates are asked for what the face demands: a client
// without any is refused where one is required, and only there.
func TestS23_ClientCertificateMissing(t *testing.T) {
	for _, f := range faces {
		if !f.mutual {
			continue
		}
		c, done := against(t, f, f.server(t))
		c.Own = nil
		check(t, c.Do(SendHello, HearHello, HearFlight), "first flight")
		c.Do(c.Rest()...)
		if a := refusedEarly(t, &c.Peer, done); !slices.Contains([]byte{40, 42, 43}, a.Code) {
			t.Errorf("%v: %v", f, a)
		}
		if isECDHE(f.suite) {
			continue
		}
		cfg := f.server(t)
		cfg.ClientAuth = tlcp.VerifyClientCertIfGiven
		c, done = against(t, f, cfg)
		c.Own = nil
		check(t, c.Handshake(), "a client that need not")
		if o := served(t, &c.Peer, done); o.state.PeerSign != nil {
			t.Error("a peer from nowhere")
		}
	}
}
