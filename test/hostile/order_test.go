package hostile

import (
	"slices"
	"testing"
)

// orders returns every way to leave steps out, to repeat one and to exchange
// them: all permutations, all sublists, and each step twice.
func orders(steps []Step) [][]Step {
	var out [][]Step
	var permute func(done, rest []Step)
	permute = func(done, rest []Step) {
		if len(rest) == 0 {
			out = append(out, slices.Clone(done))
			return
		}
		for i := range rest {
			permute(append(slices.Clone(done), rest[i]), slices.Delete(slices.Clone(rest), i, i+1))
		}
	}
	permute(nil, steps)
	for mask := range 1<<len(steps) - 1 {
		var sub []Step
		for i, s := range steps {
			if mask>>i&1 == 1 {
				sub = append(sub, s)
			}
		}
		out = append(out, sub)
	}
	for i, s := range steps {
		out = append(out, slices.Insert(slices.Clone(steps), i, s))
	}
	return out
}

// prefix reports whether got is how a genuine handshake begins: only its end
// can tell that it is none.
func prefix(got, genuine []Step) bool {
	return len(got) <= len(genuine) && slices.Equal(got, genuine[:len(got)])
}

// abandoned checks that a handshake which goes no further ends with us.
func abandoned(t *testing.T, p *Peer, done <-chan outcome) {
	t.Helper()
	p.CloseWrite()
	if _, err := p.End(); err != nil {
		t.Errorf("after the end of our side: %v", err)
	}
	p.Conn.Close()
	if o := result(t, done); o.served() {
		t.Error("the handshake was completed")
	}
}

// Each message of the client left out, doubled or in another place. The
// transcript and the keys are those of what was sent, so that only the order
// can be found wrong.
func TestS24_ClientMessagesOutOfOrder(t *testing.T) {
	each(t, func(t *testing.T, f face) {
		genuine := []Step{KeyExchange, CCS, Finished}
		if f.mutual {
			genuine = []Step{Certificate, KeyExchange, Verify, CCS, Finished}
		}
		cfg := f.server(t)
		for _, order := range orders(genuine) {
			if slices.Equal(order, genuine) {
				continue
			}
			c, done := against(t, f, cfg)
			check(t, c.Do(SendHello, HearHello, HearFlight), "first flight")
			check(t, c.Do(order...), "second flight")
			if prefix(order, genuine) {
				abandoned(t, &c.Peer, done)
			} else if len(order) > len(genuine) && prefix(order[:len(genuine)], genuine) {
				c.Do(HearEnd) // a second Finished comes after the first was right
				refused(t, &c.Peer, done)
			} else {
				refusedEarly(t, &c.Peer, done)
			}
			if t.Failed() {
				t.Fatalf("order %q", order)
			}
		}
	})
}

// Each message of the server left out, doubled or in another place.
func TestS24_ServerMessagesOutOfOrder(t *testing.T) {
	each(t, func(t *testing.T, f face) {
		cfg := f.client(t)
		unasked := []Step{SayHello, SayCert, SayKey, SayDone}
		try := func(order, genuine []Step, first ...Step) {
			t.Helper()
			if slices.Equal(order, genuine) {
				return
			}
			s, done := before(t, f, cfg)
			check(t, s.Do(append([]Step{HearClient}, first...)...), "before")
			// What comes after a whole flight is met after the answer to it.
			n := slices.Index(order, SayDone) + 1
			if n < len(order) && (slices.Equal(order[:n], genuine) || !isECDHE(f.suite) && slices.Equal(order[:n], unasked)) {
				check(t, s.Do(append(slices.Clone(order[:n]), HearAnswer)...), "flight and answer")
				check(t, s.Do(order[n:]...), "what should not come")
			} else {
				check(t, s.Do(order...), "flight")
			}
			if prefix(order, genuine) {
				abandoned(t, &s.Peer, done)
			} else if len(order) > len(genuine) && prefix(order[:len(genuine)], genuine) {
				refused(t, &s.Peer, done)
			} else {
				refusedEarly(t, &s.Peer, done)
			}
			if t.Failed() {
				t.Fatalf("order %q", order)
			}
		}
		genuine := unasked
		if f.mutual {
			genuine = []Step{SayHello, SayCert, SayKey, SayRequest, SayDone}
		}
		for _, order := range orders(genuine) {
			if f.mutual && !isECDHE(f.suite) && slices.Equal(order, unasked) {
				continue // a server need not ask
			}
			try(order, genuine)
		}
		for _, order := range orders([]Step{SayCCS, SayFinished}) {
			try(order, []Step{SayCCS, SayFinished}, append(genuine, HearAnswer)...)
		}
	})
}

// Any other handshake message, any record type, at each place.
func TestS24_ForeignMessages(t *testing.T) {
	kinds := []byte{0, 1, 2, 3, 4, 5, 8, 11, 12, 13, 14, 15, 16, 20, 21, 22, 23, 24, 67, 100, 254, 255}
	if long() {
		kinds = kinds[:0]
		for k := range 256 {
			kinds = append(kinds, byte(k))
		}
	}
	want := map[Step]byte{SendHello: MsgClientHello, Certificate: MsgCertificate, KeyExchange: MsgClientKeyExchange, Verify: MsgCertificateVerify}
	each(t, func(t *testing.T, f face) {
		cfg := f.server(t)
		genuine := []Step{SendHello, HearHello, HearFlight, KeyExchange, CCS, Finished, HearEnd}
		if f.mutual {
			genuine = []Step{SendHello, HearHello, HearFlight, Certificate, KeyExchange, Verify, CCS, Finished, HearEnd}
		}
		for at := range len(genuine) + 1 {
			var next Step
			if at < len(genuine) {
				next = genuine[at]
			}
			if next == HearHello || next == HearFlight || next == HearEnd {
				continue // the server speaks
			}
			for _, k := range kinds {
				if want[next] == k || next == Finished && k == MsgFinished {
					continue
				}
				c, done := against(t, f, cfg)
				check(t, c.Do(genuine[:at]...), "before")
				c.Say(k, []byte("anything"))
				refused(t, &c.Peer, done)
				if t.Failed() {
					t.Fatalf("handshake message %d before %q", k, next)
				}
			}
			for _, typ := range []byte{0, 19, 20, 21, 22, 23, 24, 25, 26, 128, 255} {
				if next == CCS && typ == TypeCCS || next == "" && typ == TypeData {
					continue
				}
				c, done := against(t, f, cfg)
				check(t, c.Do(genuine[:at]...), "before")
				body := []byte{1}
				if typ == TypeHandshake {
					body = nil // an empty piece of a message
				}
				c.Send(typ, body)
				refused(t, &c.Peer, done)
				if t.Failed() {
					t.Fatalf("record of type %d before %q", typ, next)
				}
			}
		}
	})
}

// The same toward our client.
func TestS24_ForeignMessagesFromServer(t *testing.T) {
	kinds := []byte{0, 1, 2, 3, 4, 5, 8, 11, 12, 13, 14, 15, 16, 20, 21, 22, 23, 24, 67, 100, 254, 255}
	want := map[Step][]byte{
		SayHello: {MsgServerHello}, SayCert: {MsgCertificate}, SayKey: {MsgServerKeyExchange},
		SayRequest: {MsgCertificateRequest, MsgServerHelloDone}, SayDone: {MsgServerHelloDone, MsgCertificateRequest}, SayFinished: {MsgFinished},
		"": {MsgHelloRequest},
	}
	each(t, func(t *testing.T, f face) {
		cfg := f.client(t)
		genuine := []Step{HearClient, SayHello, SayCert, SayKey, SayDone, HearAnswer, SayCCS, SayFinished}
		if f.mutual {
			genuine = slices.Insert(genuine, 4, SayRequest)
		}
		for at := 1; at <= len(genuine); at++ {
			var next Step
			if at < len(genuine) {
				next = genuine[at]
			}
			if next == HearAnswer {
				continue
			}
			for _, k := range kinds {
				if slices.Contains(want[next], k) {
					continue
				}
				s, done := before(t, f, cfg)
				check(t, s.Do(genuine[:at]...), "before")
				s.Say(k, []byte("anything"))
				refused(t, &s.Peer, done)
				if t.Failed() {
					t.Fatalf("handshake message %d before %q", k, next)
				}
			}
			for _, typ := range []byte{0, 19, 20, 21, 22, 23, 24, 128, 255} {
				if next == SayCCS && typ == TypeCCS || next == "" && typ == TypeData {
					continue
				}
				s, done := before(t, f, cfg)
				check(t, s.Do(genuine[:at]...), "before")
				body := []byte{1}
				if typ == TypeHandshake {
					body = nil
				}
				s.Send(typ, body)
				refused(t, &s.Peer, done)
				if t.Failed() {
					t.Fatalf("record of type %d before %q", typ, next)
				}
			}
		}
	})
}
