package tlcp

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// parsed is a handshake message that reads and writes itself.
type parsed interface {
	marshal() []byte
	unmarshal([]byte) bool
}

type skxOf struct {
	serverKeyExchange
	ecdhe bool
}

func (m *skxOf) unmarshal(b []byte) bool { return m.serverKeyExchange.unmarshal(b, m.ecdhe) }

// parsers are all that take a message's body. exact: what was read is written
// the same; hellos lose the extensions that we do not know.
var parsers = []struct {
	name  string
	make  func() parsed
	exact bool
}{
	{"client hello", func() parsed { return new(clientHello) }, false},
	{"server hello", func() parsed { return new(serverHello) }, false},
	{"certificate", func() parsed { return new(certificateMsg) }, true},
	{"server key exchange ECC", func() parsed { return new(skxOf) }, true},
	{"server key exchange ECDHE", func() parsed { return &skxOf{ecdhe: true} }, true},
	{"certificate request", func() parsed { return new(certificateRequest) }, true},
	{"client key exchange", func() parsed { return new(clientKeyExchange) }, true},
	{"certificate verify", func() parsed { return new(certificateVerify) }, true},
	{"finished", func() parsed { return new(finishedMsg) }, true},
	{"new session ticket", func() parsed { return new(newSessionTicket) }, true},
}

// FuzzMessages gives each parser any body. What it takes must be written as it
// was, or at least be read the same again.
func FuzzMessages(f *testing.F) {
	hello := &clientHello{version: Version, random: ascending(32), sessionID: ascending(7), suites: []uint16{1, 2}, compressions: []byte{0},
		serverName: "gw.example.org", alpn: []string{"h2", "x"}, offersTicket: true, ticket: []byte("ticket")}
	seeds := [][]byte{
		hello.marshal(),
		(&serverHello{version: Version, random: ascending(32), sessionID: ascending(32), suite: 7, alpn: "h2", givesTicket: true}).marshal(),
		(&certificateMsg{[][]byte{{1}, {2, 3}}}).marshal(),
		(&serverKeyExchange{signature: []byte{1, 2}}).marshal(),
		(&serverKeyExchange{params: ecdheParams(make([]byte, pointLen)), signature: []byte{1, 2}}).marshal(),
		(&certificateRequest{types: []byte{64}, authorities: [][]byte{{1}, {2}}}).marshal(),
		(&clientKeyExchange{[]byte{9}}).marshal(),
		(&certificateVerify{[]byte{9}}).marshal(),
		(&finishedMsg{make([]byte, verifyDataLen)}).marshal(),
		(&newSessionTicket{7, []byte("t")}).marshal(),
	}
	for which, s := range seeds {
		f.Add(byte(which), s[4:])
	}
	f.Fuzz(func(t *testing.T, which byte, body []byte) {
		p := parsers[int(which)%len(parsers)]
		m := p.make()
		if !m.unmarshal(body) {
			return
		}
		out := m.marshal()
		if p.exact {
			if !bytes.Equal(out[4:], body) {
				t.Errorf("%s: read % x, wrote % x", p.name, body, out[4:])
			}
			return
		}
		again := p.make()
		if !again.unmarshal(out[4:]) {
			t.Fatalf("%s: does not read what it wrote: % x", p.name, out)
		}
		if !bytes.Equal(again.marshal(), out) {
			t.Errorf("%s: reads what it wrote differently", p.name)
		}
	})
}

// FuzzClientKey gives the readers of a ClientKeyExchange any body.
func FuzzClientKey(f *testing.F) {
	site := newSite(f)
	body, err := sealPremaster(testRand(f), site.server.encLeaf, append([]byte{1, 1}, make([]byte, 46)...))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add(clientECDHE(make([]byte, pointLen), true))
	f.Add(clientECDHE(make([]byte, pointLen), false))
	f.Fuzz(func(t *testing.T, body []byte) {
		if der := canonicalCiphertext(body); der != nil && !bytes.Equal(canonicalCiphertext(der), der) {
			t.Errorf("% x is not canonical", der)
		}
		if point, ok := parseClientECDHE(body); ok && len(point) != pointLen {
			t.Errorf("a point of %d bytes", len(point))
		}
		s := cryptobyte.String(body)
		if point, ok := parseECDHEParams(&s); ok && len(point) != pointLen {
			t.Errorf("a point of %d bytes", len(point))
		}
		secret, err := openPremaster(testRand(t), site.server, body, Version)
		if err != nil || len(secret) != premasterLen {
			t.Errorf("%d bytes, %v", len(secret), err)
		}
	})
}

// FuzzSession gives the readers of sessions and tickets any bytes.
func FuzzSession(f *testing.F) {
	site := newSite(f)
	c := &Config{TicketKeys: [][]byte{make([]byte, 16)}, Time: testClock}
	for _, message := range [][][]byte{nil, site.client.message} {
		s := &Session{suite: ECC_SM4_GCM_SM3, master: make([]byte, 48), created: testTime, serverName: "a", id: []byte{1}}
		if message != nil {
			p, err := readPeer(message, false)
			if err != nil {
				f.Fatal(err)
			}
			s.peer = p
		}
		b, err := s.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		if b, err = c.sealTicket(s); err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c.openTicket(b)
		s, err := ParseSession(b)
		if err != nil {
			return
		}
		out, err := s.MarshalBinary()
		if err != nil || !bytes.Equal(out, b) {
			t.Errorf("read % x, wrote % x, %v", b, out, err)
		}
	})
}

// FuzzRecord opens any body under the keys of either cipher.
func FuzzRecord(f *testing.F) {
	for _, id := range []uint16{ECC_SM4_GCM_SM3, ECC_SM4_CBC_SM3} {
		out, _ := halves(f, id)
		f.Add(id == ECC_SM4_GCM_SM3, seal(f, out, []byte("hello"))[recordHeader:])
	}
	f.Fuzz(func(t *testing.T, gcm bool, body []byte) {
		id := ECC_SM4_CBC_SM3
		if gcm {
			id = ECC_SM4_GCM_SM3
		}
		out, in := halves(t, id)
		payload, err := in.open(recordApplicationData, bytes.Clone(body), nil)
		if err != nil {
			return
		}
		// Nobody but us knows the key: it must be what we would have sent. CBC
		// has an IV of its own and any padding.
		if again := seal(t, out, payload)[recordHeader:]; gcm && !bytes.Equal(again, body) {
			t.Errorf("% x opens as % x, which seals as % x", body, payload, again)
		}
	})
}

// source is a transport that gives bytes, then the end, and takes anything.
type source struct {
	net.Conn
	in bytes.Reader
}

func (s *source) Read(b []byte) (int, error)       { return s.in.Read(b) }
func (s *source) Write(b []byte) (int, error)      { return len(b), nil }
func (s *source) Close() error                     { return nil }
func (s *source) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *source) SetWriteDeadline(time.Time) error { return nil }

// FuzzHandshake gives a server and a client any bytes from their peer. None may
// complete, none may panic.
func FuzzHandshake(f *testing.F) {
	site := newSite(f)
	hello := &clientHello{version: Version, random: ascending(32), suites: []uint16{ECC_SM4_GCM_SM3, ECDHE_SM4_GCM_SM3}, compressions: []byte{0}}
	flight := record(recordHandshake, hello.marshal())
	f.Add(true, flight)
	f.Add(true, append(flight, record(recordHandshake, (&certificateMsg{site.client.message}).marshal())...))
	reply := record(recordHandshake, (&serverHello{version: Version, random: ascending(32), suite: ECC_SM4_GCM_SM3}).marshal())
	reply = append(reply, record(recordHandshake, (&certificateMsg{site.server.message}).marshal())...)
	f.Add(false, reply)
	f.Add(false, record(recordAlert, []byte{2, 40}))
	f.Fuzz(func(t *testing.T, server bool, in []byte) {
		s, c := site.configs(ECC_SM4_GCM_SM3, true)
		s.CipherSuites, c.CipherSuites = nil, nil
		s.SessionCache, s.TicketKeys = NewLRUSessionCache(1), [][]byte{make([]byte, 16)}
		transport := &source{}
		transport.in.Reset(in)
		conn := Client(transport, c)
		if server {
			conn = Server(transport, s)
		}
		if err := conn.Handshake(); err == nil {
			t.Error("a handshake with nobody completed")
		}
		if _, err := io.ReadAll(conn); err == nil {
			t.Error("Read on a failed handshake")
		}
	})
}
