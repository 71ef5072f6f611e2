package tlcp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/emmansun/gmsm/smx509"
)

// judgeBoth checks the alert that one side sent and the other got.
func judgeBoth(t *testing.T, name string, sent, got error, want Alert) {
	t.Helper()
	judge(t, certificateCase{name, nil, want, 0}, false, sent, got)
}

func TestSuitesAreTheServersChoice(t *testing.T) {
	site := newSite(t)
	all := []uint16{ECC_SM4_CBC_SM3, ECDHE_SM4_CBC_SM3, ECC_SM4_GCM_SM3, ECDHE_SM4_GCM_SM3}
	for _, c := range []struct {
		name           string
		server, client []uint16
		auth           ClientAuthType
		present        bool
		want           uint16 // 0: refused
	}{
		{"defaults, mutual", nil, nil, RequireAndVerifyClientCert, true, ECDHE_SM4_GCM_SM3},
		{"defaults, one-way", nil, nil, NoClientCert, false, ECC_SM4_GCM_SM3},
		{"the client lists ECDHE, the server does not ask", nil, all, NoClientCert, true, ECC_SM4_GCM_SM3},
		{"asked, not required", nil, all, VerifyClientCertIfGiven, true, ECC_SM4_GCM_SM3},
		{"the server's order", []uint16{ECC_SM4_CBC_SM3, ECC_SM4_GCM_SM3}, all, NoClientCert, false, ECC_SM4_CBC_SM3},
		{"only CBC in common", []uint16{ECC_SM4_CBC_SM3}, all, NoClientCert, false, ECC_SM4_CBC_SM3},
		{"nothing in common", []uint16{ECC_SM4_CBC_SM3}, []uint16{ECC_SM4_GCM_SM3}, NoClientCert, false, 0},
		{"ECDHE alone, one-way", []uint16{ECDHE_SM4_GCM_SM3}, all, NoClientCert, true, 0},
	} {
		server, client := site.configs(0, true)
		server.CipherSuites, client.CipherSuites, server.ClientAuth = c.server, c.client, c.auth
		if !c.present {
			client.Certificates = nil
		}
		s, _, serverErr, clientErr := handshake(t, "tcp4", server, client)
		if c.want == 0 {
			judgeBoth(t, c.name, serverErr, clientErr, AlertHandshakeFailure)
			continue
		}
		if got := s.ConnectionState().CipherSuite; serverErr != nil || clientErr != nil || got != c.want {
			t.Errorf("%s: got %04x, %v, %v; want %04x", c.name, got, serverErr, clientErr, c.want)
		}
	}
}

func TestALPN(t *testing.T) {
	site := newSite(t)
	for _, c := range []struct {
		server, client []string
		want           string
		refused        bool
	}{
		{[]string{"h2", "http/1.1"}, []string{"http/1.1", "h2"}, "h2", false},
		{[]string{"h2", "http/1.1"}, []string{"http/1.1"}, "http/1.1", false},
		{[]string{"h2"}, nil, "", false},
		{nil, []string{"h2"}, "", false},
		{[]string{"h2"}, []string{"yumen/1"}, "", true},
	} {
		server, client := site.configs(ECC_SM4_GCM_SM3, false)
		server.NextProtos, client.NextProtos = c.server, c.client
		s, k, serverErr, clientErr := handshake(t, "tcp4", server, client)
		if c.refused {
			judgeBoth(t, fmt.Sprint(c), serverErr, clientErr, AlertNoApplicationProtocol)
			continue
		}
		if a, b := s.ConnectionState().NegotiatedProtocol, k.ConnectionState().NegotiatedProtocol; a != c.want || b != c.want || serverErr != nil {
			t.Errorf("%v: server %q, client %q, %v", c, a, b, serverErr)
		}
	}
}

func TestCallbacksChoose(t *testing.T) {
	site := newSite(t)
	other := site.root.intermediate("other").pair()
	hello := func(t *testing.T, h *ClientHelloInfo) {
		t.Helper()
		if h.ServerName != "gw.example.org" || !slices.Equal(h.SupportedProtos, []string{"yumen/1"}) || !slices.Equal(h.CipherSuites, []uint16{ECC_SM4_GCM_SM3}) || h.Conn.RemoteAddr() == nil {
			t.Errorf("hello: %+v", h)
		}
	}
	forbidden := &AlertError{Alert: AlertAccessDenied, Err: errors.New("not from there")}
	for _, c := range []struct {
		name   string
		edit   func(*Config)
		want   *Pair
		refuse Alert
	}{
		{"GetCertificate", func(s *Config) {
			s.GetCertificate = func(h *ClientHelloInfo) (*Pair, error) { hello(t, h); return other, nil }
		}, other, 0},
		{"GetCertificate falls back", func(s *Config) {
			s.GetCertificate = func(*ClientHelloInfo) (*Pair, error) { return nil, nil }
		}, site.server, 0},
		{"GetCertificate fails", func(s *Config) {
			s.GetCertificate = func(*ClientHelloInfo) (*Pair, error) { return nil, errors.New("no") }
		}, nil, AlertInternalError},
		{"GetCertificate has none", func(s *Config) {
			s.Certificates = nil
			s.GetCertificate = func(*ClientHelloInfo) (*Pair, error) { return nil, nil }
		}, nil, AlertUnrecognizedName},
		{"GetConfigForClient", func(s *Config) {
			s.GetConfigForClient = func(h *ClientHelloInfo) (*Config, error) {
				hello(t, h)
				return &Config{Time: testClock, Certificates: []*Pair{other}}, nil
			}
		}, other, 0},
		{"GetConfigForClient keeps", func(s *Config) {
			s.GetConfigForClient = func(*ClientHelloInfo) (*Config, error) { return nil, nil }
		}, site.server, 0},
		{"GetConfigForClient refuses by an alert", func(s *Config) {
			s.GetConfigForClient = func(*ClientHelloInfo) (*Config, error) { return nil, fmt.Errorf("ask: %w", forbidden) }
		}, nil, AlertAccessDenied},
		{"GetConfigForClient gives nonsense", func(s *Config) {
			s.GetConfigForClient = func(*ClientHelloInfo) (*Config, error) { return new(Config), nil }
		}, nil, AlertInternalError},
		{"VerifyConnection refuses", func(s *Config) {
			s.VerifyConnection = func(st ConnectionState) error {
				if st.CipherSuite != ECC_SM4_GCM_SM3 || st.ServerName != "gw.example.org" {
					t.Errorf("state: %+v", st)
				}
				return errors.New("no")
			}
		}, nil, AlertBadCertificate},
	} {
		server, client := site.configs(ECC_SM4_GCM_SM3, false)
		client.NextProtos = []string{"yumen/1"}
		client.ServerName = "GW.example.org"
		c.edit(server)
		_, k, serverErr, clientErr := handshake(t, "tcp4", server, client)
		if c.want == nil {
			judgeBoth(t, c.name, serverErr, clientErr, c.refuse)
			continue
		}
		if serverErr != nil || clientErr != nil || !k.ConnectionState().PeerSign.Equal(c.want.signLeaf) {
			t.Errorf("%s: server %v, client %v", c.name, serverErr, clientErr)
		}
	}
}

func TestServerPicksTheCertificateForTheName(t *testing.T) {
	site := newSite(t)
	named := func(host string) *Pair {
		sub := site.root.intermediate("sub of " + host)
		return sub.pair(hostOnly(host))
	}
	a, b := named("a.example.org"), named("*.b.example.org")
	for host, want := range map[string]*Pair{"a.example.org": a, "x.b.example.org": b} {
		server, client := site.configs(ECC_SM4_GCM_SM3, false)
		server.Certificates, client.ServerName = []*Pair{site.server, a, b}, host
		_, c := mustHandshake(t, "tcp4", server, client)
		if got := c.ConnectionState().PeerSign; !got.Equal(want.signLeaf) {
			t.Errorf("%s: got the certificate for %v", host, got.DNSNames)
		}
	}
}

func TestClientPicksThePairOfANamedAuthority(t *testing.T) {
	site := newSite(t)
	foreign := newRoot(t, "foreign").intermediate("foreign sub").pair()
	server, client := site.configs(ECC_SM4_GCM_SM3, true)
	client.Certificates = []*Pair{foreign, site.client}
	s, _ := mustHandshake(t, "tcp4", server, client)
	if !s.ConnectionState().PeerSign.Equal(site.client.signLeaf) {
		t.Error("the client presented the pair of another authority")
	}
}

func TestServerHelloMustAnswerTheClientHello(t *testing.T) {
	site := newSite(t)
	const suiteAt = recordHeader + 4 + 2 + 32 + 1 // no session id
	extension := func(raw, ext []byte) []byte {
		b := raw[recordHeader+4:]
		b = append(slices.Clone(b), byte(len(ext)>>8), byte(len(ext)))
		b = append(b, ext...)
		return record(recordHandshake, append([]byte{typeServerHello, 0, 0, byte(len(b))}, b...))
	}
	for _, c := range []struct {
		name string
		edit func(raw []byte) []byte
		want Alert
	}{
		{"another version", func(b []byte) []byte { b[recordHeader+5] = 2; return b }, AlertProtocolVersion},
		{"TLS", func(b []byte) []byte { b[recordHeader+4], b[recordHeader+5] = 3, 3; return b }, AlertProtocolVersion},
		{"a suite not offered", func(b []byte) []byte { binary.BigEndian.PutUint16(b[suiteAt:], ECC_SM4_CBC_SM3); return b }, AlertIllegalParameter},
		{"an unknown suite", func(b []byte) []byte { binary.BigEndian.PutUint16(b[suiteAt:], 0x1301); return b }, AlertIllegalParameter},
		{"compression", func(b []byte) []byte { b[suiteAt+2] = 1; return b }, AlertIllegalParameter},
		{"a protocol not offered", func(b []byte) []byte { return extension(b, []byte{0, 16, 0, 5, 0, 3, 2, 'h', '2'}) }, AlertIllegalParameter},
		{"a ticket not offered", func(b []byte) []byte { return extension(b, []byte{0, 35, 0, 0}) }, AlertUnsupportedExtension},
		{"an unknown extension", func(b []byte) []byte { return extension(b, []byte{0, 99, 0, 0}) }, AlertUnsupportedExtension},
		{"an extension twice", func(b []byte) []byte { return extension(b, []byte{0, 0, 0, 0, 0, 0, 0, 0}) }, AlertDecodeError},
		{"the name acknowledged", func(b []byte) []byte { return extension(b, []byte{0, 0, 0, 0}) }, AlertDecryptError}, // goes on, and the transcripts differ
	} {
		server, client := site.configs(ECC_SM4_GCM_SM3, false)
		res := relayed(t, server, client, func(r wireRecord) [][]byte {
			if !r.fromClient && r.index == 0 {
				return [][]byte{c.edit(r.raw)}
			}
			return unchanged(r)
		})
		if c.want == AlertDecryptError {
			judgeBoth(t, c.name, res.serverErr, res.clientErr, c.want)
			continue
		}
		if a, remote, ok := alertOf(res.clientErr); !ok || remote || a != c.want {
			t.Errorf("%s: client %v, want %v", c.name, res.clientErr, c.want)
		}
	}
}

func TestClientHelloIsRefused(t *testing.T) {
	site := newSite(t)
	for _, c := range []struct {
		name string
		edit func(*clientHello)
		want Alert
	}{
		{"TLS 1.2", func(h *clientHello) { h.version = 0x0303 }, AlertProtocolVersion},
		{"version 1.0", func(h *clientHello) { h.version = 0x0100 }, AlertProtocolVersion},
		{"no suite that we know", func(h *clientHello) { h.suites = []uint16{0xE01C, 0x00FF} }, AlertHandshakeFailure},
		{"only compression", func(h *clientHello) { h.compressions = []byte{1} }, AlertIllegalParameter},
		{"no compression method", func(h *clientHello) { h.compressions = nil }, AlertDecodeError},
		{"no suite", func(h *clientHello) { h.suites = nil }, AlertDecodeError},
		{"session id of 33 bytes", func(h *clientHello) { h.sessionID = make([]byte, 33) }, AlertDecodeError},
		{"a name with a dot behind", func(h *clientHello) { h.serverName = "a." }, AlertDecodeError},
		{"a name with a NUL", func(h *clientHello) { h.serverName = "a\x00b" }, AlertDecodeError},
	} {
		a, b := socketPair(t, "tcp4")
		h := &clientHello{version: Version, random: make([]byte, 32), suites: []uint16{ECC_SM4_GCM_SM3, 0x00ff}, compressions: []byte{0}}
		c.edit(h)
		if _, err := b.Write(record(recordHandshake, h.marshal())); err != nil {
			t.Fatal(err)
		}
		server, _ := site.configs(ECC_SM4_GCM_SM3, false)
		err := Server(a, server).Handshake()
		if got, _, ok := alertOf(err); !ok || got != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		want := record(recordAlert, []byte{levelFatal, byte(c.want)})
		got := make([]byte, len(want))
		if _, err := b.Read(got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the client reads % x, %v; want % x", c.name, got, err, want)
		}
	}
}

// TestKeyExchangeFailsAlike: a wrong version inside, a wrong ciphertext and
// something that is none end by the same alert at the same place.
func TestKeyExchangeFailsAlike(t *testing.T) {
	site := newSite(t)
	exchangeAt := func(edit func(body []byte) []byte) rewrite {
		return func(r wireRecord) [][]byte {
			if r.fromClient && r.index == 1 {
				body := edit(r.raw[recordHeader+4:])
				return [][]byte{record(recordHandshake, append([]byte{typeClientKeyExchange, 0, byte(len(body) >> 8), byte(len(body))}, body...))}
			}
			return unchanged(r)
		}
	}
	for name, f := range map[string]rewrite{
		// The hello says 1.2, the premaster secret 1.1.
		"version": func(r wireRecord) [][]byte {
			if r.fromClient && r.index == 0 {
				r.raw[recordHeader+5] = 2
			}
			return unchanged(r)
		},
		"ciphertext": exchangeAt(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }),
		"point":      exchangeAt(func(b []byte) []byte { b[10] ^= 1; return b }),
		"no point":   exchangeAt(func(b []byte) []byte { b[2] = 0x31; return b }),
		"rubbish":    exchangeAt(func(b []byte) []byte { return []byte{0, 1, 2} }),
		"length":     exchangeAt(func(b []byte) []byte { b[1]++; return b }),
		"behind it":  exchangeAt(func(b []byte) []byte { return append(b, 1) }),
	} {
		server, client := site.configs(ECC_SM4_GCM_SM3, false)
		res := relayed(t, server, client, f)
		judgeBoth(t, name, res.serverErr, res.clientErr, AlertBadRecordMAC)
		var a *AlertError
		if !errors.As(res.serverErr, &a) || !errors.Is(a.Err, errMAC) {
			t.Errorf("%s: the server says %v, which tells more", name, res.serverErr)
		}
	}
}

// TestSloppyCiphertextsAreRead: what other stacks have sent.
func TestSloppyCiphertextsAreRead(t *testing.T) {
	site := newSite(t)
	secret := append([]byte{1, 1}, bytes.Repeat([]byte{7}, 46)...)
	body, err := sealPremaster(testRand(t), site.server.encLeaf, secret)
	if err != nil {
		t.Fatal(err)
	}
	open := func(body []byte) bool {
		t.Helper()
		got, err := openPremaster(testRand(t), site.server, body, Version)
		if err != nil || len(got) != premasterLen {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		return bytes.Equal(got, secret)
	}
	der := body[2:]
	prefixed := func(b []byte) []byte { return append([]byte{byte(len(b) >> 8), byte(len(b))}, b...) }
	if !open(body) {
		t.Error("as we send it: not read")
	}
	if !open(prefixed(append(slices.Clone(der), 0, 0, 0))) {
		t.Error("zeros behind the sequence: not read")
	}
	if !open(append(slices.Clone(body), 0, 0)) {
		t.Error("zeros behind the field: not read")
	}
	// A leading zero more than DER allows, in the first coordinate.
	if der[0] != 0x30 || der[1] != 0x81 || der[3] != 0x02 {
		t.Fatalf("ciphertext begins % x", der[:4])
	}
	grown := append([]byte{0x30, 0x81, der[2] + 1, 0x02, der[4] + 1, 0x00}, der[5:]...)
	if !open(prefixed(grown)) {
		t.Error("an integer with a zero in front: not read")
	}
	for name, b := range map[string][]byte{
		"one behind the sequence": prefixed(append(slices.Clone(der), 1)),
		"raw C1C3C2":              prefixed(make([]byte, 65+32+48)),
		"empty":                   {},
		"no content":              {0, 0},
	} {
		if open(b) {
			t.Errorf("%s: read", name)
		}
	}
	if got, _ := openPremaster(testRand(t), site.server, body, 0x0102); bytes.Equal(got, secret) {
		t.Error("a secret of another version was taken")
	}
}

func TestClientECDHEForms(t *testing.T) {
	site := newSite(t)
	for _, vector := range []bool{false, true} {
		want := 4 + pointLen
		if vector {
			want += 2
		}
		server, client := site.configs(ECDHE_SM4_GCM_SM3, true)
		client.ECDHEVector = vector
		got := 0
		res := relayed(t, server, client, func(r wireRecord) [][]byte {
			if r.fromClient && r.kind() == recordHandshake && r.body()[0] == typeClientKeyExchange {
				got = len(r.body()) - 4
			}
			return unchanged(r)
		})
		if res.serverErr != nil || res.clientErr != nil || got != want {
			t.Errorf("vector %v: %v, %v; %d bytes, want %d", vector, res.serverErr, res.clientErr, got, want)
		}
	}
	// A point off the curve.
	server, client := site.configs(ECDHE_SM4_GCM_SM3, true)
	res := relayed(t, server, client, func(r wireRecord) [][]byte {
		if r.fromClient && r.kind() == recordHandshake && r.body()[0] == typeClientKeyExchange {
			r.raw[len(r.raw)-1] ^= 1
		}
		return unchanged(r)
	})
	judgeBoth(t, "a point off the curve", res.serverErr, res.clientErr, AlertIllegalParameter)
}

// TestFinishedCoversTheHandshake: with the right keys and one byte more in the
// transcript, Finished is refused.
func TestFinishedCoversTheHandshake(t *testing.T) {
	site := newSite(t)
	for _, suite := range allSuites {
		server, client := site.configs(suite, isECDHE(suite))
		a, b := socketPair(t, "tcp4")
		s, c := Server(a, server), Client(b, client)
		done := make(chan error, 1)
		go func() { done <- s.Handshake() }()
		clientErr := func() error {
			c.in.mu.Lock()
			defer c.in.mu.Unlock()
			h := &clientHandshake{c: c, config: client, log: newTranscript()}
			if err := h.sendHello(); err != nil {
				return err
			}
			if _, err := h.readServerHello(); err != nil {
				return err
			}
			params, err := h.readServerKeys()
			if err != nil {
				return err
			}
			if err := h.sendKeys(params); err != nil {
				return err
			}
			h.log.add([]byte{0})
			return h.finish()
		}()
		judgeBoth(t, "the client's, "+CipherSuiteName(suite), <-done, clientErr, AlertDecryptError)

		a, b = socketPair(t, "tcp4")
		s, c = Server(a, server), Client(b, client)
		go func() {
			s.in.mu.Lock()
			defer s.in.mu.Unlock()
			h := &serverHandshake{c: s, config: server, log: newTranscript()}
			err := errors.Join(h.readClientHello(), h.choose(), h.sendHello(), h.readClientKeys(), h.establishKeys(), h.readFinished())
			h.log.add([]byte{0})
			err = errors.Join(err, h.sendFinished(nil))
			if err == nil {
				_, _, err = s.nextRecord(nil)
			}
			done <- err
		}()
		clientErr = c.Handshake()
		judgeBoth(t, "the server's, "+CipherSuiteName(suite), clientErr, <-done, AlertDecryptError)
	}
}

// TestNothingFollowsFinished: handshake bytes in the record of Finished are
// refused, by either side.
func TestNothingFollowsFinished(t *testing.T) {
	site := newSite(t)
	server, client := site.configs(ECC_SM4_GCM_SM3, false)
	a, b := socketPair(t, "tcp4")
	s, c := Server(a, server), Client(b, client)
	done := make(chan error, 1)
	go func() { done <- s.Handshake() }()
	sent := func() error {
		c.in.mu.Lock()
		defer c.in.mu.Unlock()
		h := &clientHandshake{c: c, config: client, log: newTranscript()}
		if err := h.sendHello(); err != nil {
			return err
		}
		if _, err := h.readServerHello(); err != nil {
			return err
		}
		params, err := h.readServerKeys()
		if err != nil {
			return err
		}
		if err := errors.Join(h.sendKeys(params), h.establishKeys(), c.writeChangeCipherSpec()); err != nil {
			return err
		}
		finished := (&finishedMsg{h.log.finished(newDerivation(h.master), labelClientFinished)}).marshal()
		if err := h.send(append(finished, 0)); err != nil {
			return err
		}
		_, _, err = c.nextRecord(nil)
		return err
	}()
	judgeBoth(t, "behind the client's Finished", <-done, sent, AlertUnexpectedMessage)
}

// TestNothingStraddlesChangeCipherSpec: handshake bytes that came in the clear
// must not be taken for what the new keys protect.
func TestNothingStraddlesChangeCipherSpec(t *testing.T) {
	site := newSite(t)
	finished := append([]byte{typeFinished, 0, 0, verifyDataLen}, make([]byte, verifyDataLen)...)
	for _, extra := range [][]byte{finished, finished[:1]} {
		for _, kind := range []byte{typeClientKeyExchange, typeServerHelloDone} {
			server, client := site.configs(ECC_SM4_GCM_SM3, false)
			sealed := map[bool]bool{}
			res := relayed(t, server, client, func(r wireRecord) [][]byte {
				sealed[r.fromClient] = sealed[r.fromClient] || r.kind() == recordChangeCipherSpec
				if !sealed[r.fromClient] && r.body()[0] == kind {
					return [][]byte{record(recordHandshake, append(slices.Clone(r.body()), extra...))}
				}
				return unchanged(r)
			})
			receiver := res.serverErr
			if kind == typeServerHelloDone {
				receiver = res.clientErr
			}
			if a, remote, ok := alertOf(receiver); !ok || remote || a != AlertUnexpectedMessage {
				t.Errorf("%d bytes behind message %d: %v, want unexpected_message", len(extra), kind, receiver)
			}
		}
	}
}

// TestResumedSuiteIsTheSessions: a server that resumes must keep the suite.
func TestResumedSuiteIsTheSessions(t *testing.T) {
	site := newSite(t)
	server, client := site.configs(ECC_SM4_GCM_SM3, false)
	withSessions(server, client, "id")
	client.CipherSuites = nil
	s, c := mustHandshake(t, "tcp4", server, client)
	s.Close()
	c.Close()
	res := relayed(t, server, client, func(r wireRecord) [][]byte {
		if !r.fromClient && r.index == 0 {
			binary.BigEndian.PutUint16(r.body()[4+2+32+1+32:], ECC_SM4_CBC_SM3)
		}
		return unchanged(r)
	})
	if a, remote, ok := alertOf(res.clientErr); !ok || remote || a != AlertIllegalParameter {
		t.Errorf("client: %v", res.clientErr)
	}
}

func TestConfigsThatCannotWork(t *testing.T) {
	site := newSite(t)
	for name, edit := range map[string]func(s, c *Config){
		"client without RootCAs":                  func(s, c *Config) { c.RootCAs = nil },
		"client without ServerName":               func(s, c *Config) { c.ServerName = "" },
		"SkipServerName without VerifyConnection": func(s, c *Config) { c.SkipServerName = true },
		"client with ECDHE alone and no pair":     func(s, c *Config) { c.CipherSuites = []uint16{ECDHE_SM4_GCM_SM3} },
		"client with unknown suites":              func(s, c *Config) { c.CipherSuites = []uint16{0x1301} },
		"client with an empty protocol":           func(s, c *Config) { c.NextProtos = []string{""} },
		"server without certificates":             func(s, c *Config) { s.Certificates = nil },
		"server with a nil pair":                  func(s, c *Config) { s.Certificates = []*Pair{nil} },
		"server that asks, without ClientCAs":     func(s, c *Config) { s.ClientAuth = RequireAndVerifyClientCert },
		"server with an unknown ClientAuth":       func(s, c *Config) { s.ClientAuth, s.ClientCAs = 9, site.root.pool() },
		"server with a short ticket key":          func(s, c *Config) { s.TicketKeys = [][]byte{make([]byte, 15)} },
	} {
		server, client := site.configs(ECC_SM4_GCM_SM3, false)
		edit(server, client)
		_, _, serverErr, clientErr := handshake(t, "tcp4", server, client)
		if serverErr == nil || clientErr == nil {
			t.Errorf("%s: server %v, client %v", name, serverErr, clientErr)
		}
	}
	a, b := net.Pipe()
	defer b.Close()
	go func() { _, _ = b.Read(make([]byte, 64)) }()
	if err := Server(a, nil).HandshakeContext(context.Background()); err == nil {
		t.Error("a nil Config handshakes")
	}
}

func TestSkipServerName(t *testing.T) {
	site := newSite(t)
	server, client := site.configs(ECC_SM4_GCM_SM3, false)
	client.ServerName, client.SkipServerName = "", true
	cache := NewLRUSessionCache(0)
	client.SessionCache, server.SessionCache = cache, NewLRUSessionCache(0)
	asked := 0
	client.VerifyConnection = func(st ConnectionState) error {
		asked++
		if !st.PeerSign.Equal(site.server.signLeaf) || len(st.VerifiedChain) == 0 {
			return errors.New("another server")
		}
		return nil
	}
	mustHandshake(t, "tcp6", server, client)
	client.ServerName = "another.example.org" // where it was dialed
	for round := range 2 {
		_, c := mustHandshake(t, "tcp6", server, client)
		if got := c.ConnectionState().DidResume; got != (round > 0) {
			t.Errorf("round %d: resumed %v", round, got)
		}
	}
	if asked != 3 {
		t.Errorf("VerifyConnection was asked %d times", asked)
	}
	// The session is of no use to a client that wants the name.
	client.SkipServerName = false
	var name smx509.HostnameError
	if _, _, _, err := handshake(t, "tcp6", server, client); !errors.As(err, &name) {
		t.Errorf("a client that wants the name: %v", err)
	}
}
