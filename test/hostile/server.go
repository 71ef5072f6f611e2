package hostile

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"

	"github.com/emmansun/gmsm/ecdh"
	"github.com/emmansun/gmsm/sm2"
)

// Server is the server's side. The exported fields are set before the first
// step.
type Server struct {
	Peer
	// Choose is the suite that the ServerHello names. 0 is the client's first.
	Choose       uint16
	HelloVersion uint16 // 0 is Version
	Compression  byte
	Extensions   []Extension // of the ServerHello
	// EmptyExtensions sends a block of no extensions instead of no block.
	EmptyExtensions bool
	NewID           []byte // session identifier of a full handshake

	// Request asks for certificates; the body of the message, or a default one.
	Request bool
	Ask     []byte

	// Resume are sessions by identifier.
	Resume map[string]*Saved
	// GiveTicket is sent before the ChangeCipherSpec of a full handshake.
	GiveTicket []byte

	// SignedEnc is the certificate that ServerKeyExchange signs instead of the
	// encryption certificate.
	SignedEnc []byte
	// Point replaces the ephemeral point that is sent, before it is signed.
	Point []byte
	// SignWith replaces the key of the signing certificate.
	SignWith *sm2.PrivateKey

	ClientHello *Hello
	HearVector  bool // the client put a length before its parameters
	Verified    bool // CertificateVerify was received, and is right
	ephemeral   *ecdh.PrivateKey
}

// The server's steps of a full handshake, in order.
const (
	HearClient  Step = "hear ClientHello"
	SayHello    Step = "ServerHello"
	SayCert     Step = "Certificate"
	SayKey      Step = "ServerKeyExchange"
	SayRequest  Step = "CertificateRequest"
	SayDone     Step = "ServerHelloDone"
	HearAnswer  Step = "hear the client's flight"
	SayTicket   Step = "NewSessionTicket"
	SayCCS      Step = "ChangeCipherSpec"
	SayFinished Step = "Finished"
)

// Handshake runs every step in its order.
func (s *Server) Handshake() error {
	if err := s.Do(HearClient, SayHello); err != nil {
		return err
	}
	if s.Resumed {
		if err := s.Do(SayCCS, SayFinished); err != nil {
			return err
		}
		return s.hearFinished(0, "client finished")
	}
	return s.Do(append(append(s.Flight(), HearAnswer), s.Last()...)...)
}

// Flight are the steps between ServerHello and what the client answers.
func (s *Server) Flight() []Step {
	if s.Request || isECDHE(s.Suite) {
		return []Step{SayCert, SayKey, SayRequest, SayDone}
	}
	return []Step{SayCert, SayKey, SayDone}
}

// Last are the steps after the client's flight.
func (s *Server) Last() []Step {
	if s.GiveTicket != nil {
		return []Step{SayTicket, SayCCS, SayFinished}
	}
	return []Step{SayCCS, SayFinished}
}

// Do runs steps in the order given, until one fails.
func (s *Server) Do(steps ...Step) error {
	for _, x := range steps {
		if err := s.do(x); err != nil {
			return fmt.Errorf("%s: %w", x, err)
		}
	}
	return nil
}

func (s *Server) do(x Step) error {
	switch x {
	case HearClient:
		body, err := s.expect(MsgClientHello)
		if err != nil {
			return err
		}
		h, err := parseHello(body, true)
		if err != nil {
			return err
		}
		s.ClientHello, s.clientRandom, s.serverRandom = h, h.Random, random(32)
		s.Suite = s.Choose
		if s.Suite == 0 {
			s.Suite = h.Suites[0]
		}
	case SayHello:
		s.sayHello()
	case SayCert:
		s.Say(MsgCertificate, CertificateList(s.chain()...))
	case SayKey:
		s.sayKey()
	case SayRequest:
		body := s.Ask
		if body == nil {
			body = CertificateRequest([]byte{64})
		}
		s.Say(MsgCertificateRequest, body)
	case SayDone:
		s.Say(MsgServerHelloDone, nil)
		s.Flush()
	case HearAnswer:
		return s.hearAnswer()
	case SayTicket:
		s.Say(MsgTicket, cat([]byte{0, 0, 14, 16}, vec(2, s.GiveTicket)))
	case SayCCS:
		s.changeCipher(1)
	case SayFinished:
		s.Say(MsgFinished, s.finishedBody("server finished"))
		s.Flush()
	}
	return nil
}

func (s *Server) sayHello() {
	h := Hello{
		Version: s.HelloVersion, Random: s.serverRandom, SessionID: s.NewID, Suites: []uint16{s.Suite},
		Compressions: []byte{s.Compression}, Extensions: s.Extensions, EmptyExtensions: s.EmptyExtensions,
	}
	if h.Version == 0 {
		h.Version = Version
	}
	saved := s.Resume[string(s.ClientHello.SessionID)]
	if t, ok := s.ClientHello.Get(35); ok && saved == nil && len(t) > 0 {
		saved = s.Resume[string(t)]
	}
	if saved != nil {
		s.Resumed, s.Master = true, saved.Master
		if s.Choose == 0 {
			s.Suite = saved.Suite
		}
		h.SessionID, h.Suites[0] = s.ClientHello.SessionID, s.Suite
		s.derive()
	}
	s.SessionID = h.SessionID
	s.Say(MsgServerHello, h.Server())
}

func (s *Server) sayKey() {
	key := s.SignWith
	if key == nil {
		key = s.Own.Sign.Key
	}
	randoms := cat(s.clientRandom, s.serverRandom)
	if !isECDHE(s.Suite) {
		enc := s.SignedEnc
		if enc == nil {
			enc = s.Own.Enc.Cert.Raw
		}
		s.Say(MsgServerKeyExchange, sign(key, cat(randoms, vec(3, enc))))
		return
	}
	s.ephemeral = newEphemeral()
	point := s.ephemeral.PublicKey().Bytes()
	if s.Point != nil {
		point = s.Point
	}
	s.Say(MsgServerKeyExchange, cat(ecParams(point), sign(key, cat(randoms, ecParams(point)))))
}

func (s *Server) hearAnswer() error {
	kind, body, raw, err := s.hear()
	if err != nil {
		return err
	}
	if kind == MsgCertificate {
		s.hash = append(s.hash, raw...)
		if err := s.takeCertificates(body); err != nil {
			return err
		}
		if kind, body, raw, err = s.hear(); err != nil {
			return err
		}
	}
	if kind != MsgClientKeyExchange {
		return fmt.Errorf("message %d, want ClientKeyExchange", kind)
	}
	s.hash = append(s.hash, raw...)
	if err := s.hearKey(body); err != nil {
		return err
	}
	if len(s.PeerCerts) > 0 {
		signed := digest(s.hash)
		body, err := s.expect(MsgCertificateVerify)
		if err != nil {
			return err
		}
		r := &cursor{b: body}
		sig := r.vec(2)
		pub, ok := s.PeerCerts[0].PublicKey.(*ecdsa.PublicKey)
		if r.end() != nil || !ok || !verified(pub, signed, sig) {
			return errors.New("the signature of CertificateVerify is wrong")
		}
		s.Verified = true
	}
	return s.hearFinished(0, "client finished")
}

func (s *Server) hearKey(body []byte) error {
	if isECDHE(s.Suite) {
		if len(s.PeerCerts) < 2 {
			return fmt.Errorf("%d certificates from the client, ECDHE needs two", len(s.PeerCerts))
		}
		if len(body) == 71 {
			s.HearVector = true
			body = body[2:]
		}
		point, rest, err := parseECParams(body)
		if err != nil || len(rest) != 0 {
			return fmt.Errorf("parameters with %d bytes too many: %w", len(rest), err)
		}
		pub, ok := s.PeerCerts[1].PublicKey.(*ecdsa.PublicKey)
		if !ok {
			return errors.New("the client's encryption certificate has no SM2 key")
		}
		pre, err := agree(true, s.Own.Enc.Key, s.ephemeral, pub, point)
		if err != nil {
			return err
		}
		s.master(pre)
		return nil
	}
	r := &cursor{b: body}
	ct := r.vec(2)
	if err := r.end(); err != nil {
		return err
	}
	pre, err := sm2.Decrypt(s.Own.Enc.Key, ct)
	if err != nil {
		return err
	}
	if len(pre) != 48 || !bytes.Equal(pre[:2], u16(Version)) {
		return errors.New("the premaster secret has the wrong form")
	}
	s.master(pre)
	return nil
}

// Keep remembers the session for Resume.
func (s *Server) Keep() *Saved {
	return &Saved{ID: slices.Clone(s.SessionID), Ticket: s.GiveTicket, Master: s.Master, Suite: s.Suite}
}
