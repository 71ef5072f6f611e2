package hostile

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"

	"crypto/rand"
	"github.com/emmansun/gmsm/sm2"
)

// Client is the client's side. The exported fields are set before the first
// step.
type Client struct {
	Peer
	Suites     []uint16
	Extensions []Extension
	// EmptyExtensions sends a block of no extensions instead of no block.
	EmptyExtensions bool
	HelloVersion    uint16 // 0 is Version
	Compressions    []byte // nil is {0}
	Offer           *Saved // the session to resume

	// PremasterVersion is in the encrypted premaster secret. 0 is Version.
	PremasterVersion uint16
	// PremasterLength is how much is encrypted. 0 is 48.
	PremasterLength int
	// Vector puts a length before the ECDHE parameters (71 bytes, not 69).
	Vector bool
	// Ciphertext may change the encrypted premaster secret.
	Ciphertext func([]byte) []byte
	// Point replaces the ephemeral point that is sent.
	Point []byte

	Hello         Hello // as sent
	ServerHello   *Hello
	Requested     bool   // the server asked for certificates
	RequestTypes  []byte // and named these types
	RequestNames  [][]byte
	serverPoint   []byte
	newTicketNext bool
}

// Saved is a session to resume.
type Saved struct {
	ID, Ticket, Master []byte
	Suite              uint16
}

// Saved returns the session of a finished handshake.
func (c *Client) Saved() *Saved {
	return &Saved{ID: c.SessionID, Ticket: c.Ticket, Master: c.Master, Suite: c.Suite}
}

// Step is one thing that a side does in the handshake.
type Step string

// The client's steps of a full handshake, in order. Certificate and Verify are
// left out when the server does not ask.
const (
	SendHello   Step = "ClientHello"
	HearHello   Step = "hear ServerHello"
	HearFlight  Step = "hear the server's flight"
	Certificate Step = "Certificate"
	KeyExchange Step = "ClientKeyExchange"
	Verify      Step = "CertificateVerify"
	CCS         Step = "ChangeCipherSpec"
	Finished    Step = "Finished"
	HearEnd     Step = "hear the server's Finished"
)

// Handshake runs every step in its order.
func (c *Client) Handshake() error {
	if err := c.Do(SendHello, HearHello); err != nil {
		return err
	}
	if c.Resumed {
		return c.Do(HearEnd, CCS, Finished)
	}
	if err := c.Do(HearFlight); err != nil {
		return err
	}
	return c.Do(append(c.Rest(), HearEnd)...)
}

// Rest are the steps after the server's flight, but for the last.
func (c *Client) Rest() []Step {
	if !c.Requested {
		return []Step{KeyExchange, CCS, Finished}
	}
	if c.Own == nil {
		return []Step{Certificate, KeyExchange, CCS, Finished}
	}
	return []Step{Certificate, KeyExchange, Verify, CCS, Finished}
}

// Do runs steps in the order given, until one fails.
func (c *Client) Do(steps ...Step) error {
	for _, s := range steps {
		if err := c.do(s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

func (c *Client) do(s Step) error {
	switch s {
	case SendHello:
		c.hello()
	case HearHello:
		return c.hearHello()
	case HearFlight:
		return c.hearFlight()
	case Certificate:
		c.Say(MsgCertificate, CertificateList(c.chain()...))
	case KeyExchange:
		return c.keyExchange()
	case Verify:
		key := NewKey()
		if c.Own != nil {
			key = c.Own.Sign.Key
		}
		c.Say(MsgCertificateVerify, sign(key, digest(c.hash)))
	case CCS:
		c.changeCipher(0)
	case Finished:
		c.Say(MsgFinished, c.finishedBody("client finished"))
		c.Flush()
	case HearEnd:
		if c.newTicketNext {
			body, err := c.expect(MsgTicket)
			if err != nil {
				return err
			}
			r := &cursor{b: body}
			r.take(4)
			c.Ticket = r.vec(2)
			if err := r.end(); err != nil {
				return err
			}
		}
		return c.hearFinished(1, "server finished")
	}
	return nil
}

func (c *Client) hello() {
	c.clientRandom = random(32)
	c.Hello = Hello{
		Version: c.HelloVersion, Random: c.clientRandom, Suites: c.Suites, Compressions: c.Compressions,
		Extensions: c.Extensions, EmptyExtensions: c.EmptyExtensions,
	}
	if c.Hello.Version == 0 {
		c.Hello.Version = Version
	}
	if c.Hello.Compressions == nil {
		c.Hello.Compressions = []byte{0}
	}
	if c.Offer != nil {
		c.Hello.SessionID = c.Offer.ID
		if c.Offer.Ticket != nil {
			c.Hello.Extensions = append(slices.Clone(c.Extensions), Ticket(c.Offer.Ticket))
		}
	}
	c.Say(MsgClientHello, c.Hello.Client())
}

func (c *Client) hearHello() error {
	body, err := c.expect(MsgServerHello)
	if err != nil {
		return err
	}
	h, err := parseHello(body, false)
	if err != nil {
		return err
	}
	if h.Version != Version || !slices.Contains(c.Suites, h.Suites[0]) || h.Compressions[0] != 0 {
		return fmt.Errorf("the server chose version %04x, suite %04x, compression %d", h.Version, h.Suites[0], h.Compressions[0])
	}
	for _, e := range h.Extensions {
		if _, ok := c.Hello.Get(e.ID); !ok {
			return fmt.Errorf("the server answered extension %d, which was not offered", e.ID)
		}
		c.newTicketNext = c.newTicketNext || e.ID == 35
	}
	c.ServerHello, c.serverRandom, c.Suite, c.SessionID = h, h.Random, h.Suites[0], h.SessionID
	if c.Offer != nil && len(h.SessionID) > 0 && bytes.Equal(h.SessionID, c.Hello.SessionID) {
		if h.Suites[0] != c.Offer.Suite {
			return errors.New("the server resumed with another suite")
		}
		c.Resumed, c.Master = true, c.Offer.Master
		c.derive()
	}
	return nil
}

func (c *Client) hearFlight() error {
	body, err := c.expect(MsgCertificate)
	if err != nil {
		return err
	}
	if err := c.takeCertificates(body); err != nil {
		return err
	}
	if len(c.PeerCerts) < 2 {
		return fmt.Errorf("%d certificates from the server", len(c.PeerCerts))
	}
	if body, err = c.expect(MsgServerKeyExchange); err != nil {
		return err
	}
	enc := c.PeerCerts[1].Raw
	signed, rest := vec(3, enc), body
	if isECDHE(c.Suite) {
		if c.serverPoint, rest, err = parseECParams(body); err != nil {
			return err
		}
		signed = body[:len(body)-len(rest)]
	}
	r := &cursor{b: rest}
	sig := r.vec(2)
	if err := r.end(); err != nil {
		return err
	}
	pub, ok := c.PeerCerts[0].PublicKey.(*ecdsa.PublicKey)
	if !ok || !verified(pub, cat(c.clientRandom, c.serverRandom, signed), sig) {
		return errors.New("the signature of ServerKeyExchange is wrong")
	}
	kind, body, raw, err := c.hear()
	if err != nil {
		return err
	}
	c.hash = append(c.hash, raw...)
	if kind == MsgCertificateRequest {
		c.Requested = true
		r := &cursor{b: body}
		c.RequestTypes = r.vec(1)
		for n := (&cursor{b: r.vec(2)}); len(n.b) > 0 && !n.bad; {
			c.RequestNames = append(c.RequestNames, n.vec(2))
		}
		if err := r.end(); err != nil {
			return err
		}
		if body, err = c.expect(MsgServerHelloDone); err != nil {
			return err
		}
		kind = MsgServerHelloDone
	}
	if kind != MsgServerHelloDone || len(body) != 0 {
		return fmt.Errorf("message %d with %d bytes, want ServerHelloDone", kind, len(body))
	}
	return nil
}

func (c *Client) keyExchange() error {
	if len(c.PeerCerts) < 2 {
		// Nothing was heard yet: send something of the right form.
		c.Say(MsgClientKeyExchange, vec(2, random(140)))
		return nil
	}
	pub, ok := c.PeerCerts[1].PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return errors.New("the encryption certificate has no SM2 key")
	}
	if isECDHE(c.Suite) {
		static := NewKey()
		if c.Own != nil {
			static = c.Own.Enc.Key
		}
		e := newEphemeral()
		pre, err := agree(false, static, e, pub, c.serverPoint)
		if err != nil {
			return err
		}
		point := e.PublicKey().Bytes()
		if c.Point != nil {
			point = c.Point
		}
		body := ecParams(point)
		if c.Vector {
			body = vec(2, body)
		}
		c.Say(MsgClientKeyExchange, body)
		c.master(pre)
		return nil
	}
	v := c.PremasterVersion
	if v == 0 {
		v = Version
	}
	pre := append(u16(v), random(46)...)
	if n := c.PremasterLength; n != 0 {
		pre = append(pre, random(n)...)[:n]
	}
	ct := c.encrypt(pub, pre)
	if c.Ciphertext != nil {
		ct = c.Ciphertext(ct)
	}
	c.Say(MsgClientKeyExchange, vec(2, ct))
	c.master(pre)
	return nil
}

func (c *Client) encrypt(pub *ecdsa.PublicKey, b []byte) []byte {
	ct, err := sm2.EncryptASN1(rand.Reader, pub, b)
	if err != nil {
		panic(err)
	}
	return ct
}
