package control

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/wire"
)

// openKeys reads the key folder and the authority, and makes the senders,
// receivers and the TLS configuration of the links.
func (s *Server) openKeys(passphrase []byte) (err error) {
	fail := func(what string, err error) error {
		return fmt.Errorf("open keys: %s: %w (yumen control init makes a complete folder)", what, err)
	}
	if s.keys, err = keystore.Open(s.cfg.KeysDir, passphrase); err != nil {
		return fail("folder", err)
	}
	if s.ca, err = lab.Load(s.cfg.CADir, passphrase); err != nil {
		return fail("certificate authority", err)
	}
	root, err := keystore.ParseChain(s.ca.RootPEM(keystore.TLCPRoot))
	if err != nil {
		return fail("tlcp root", err)
	}
	s.tlcpRoot = root[0]
	block, _ := pem.Decode(s.ca.RootPEM(keystore.TLSRoot))
	if block == nil {
		return fail("tls root", errors.New("the authority has none"))
	}
	if s.tlsRoot, err = x509.ParseCertificate(block.Bytes); err != nil {
		return fail("tls root", err)
	}
	if s.sender, _, err = s.signer(keystore.Sign); err != nil {
		return fail(keystore.Sign, err)
	}
	if err := s.renewOwn(); err != nil {
		return fail("own certificates", err)
	}
	dec, err := s.keys.Decrypter(keystore.Enc)
	if err != nil {
		return fail(keystore.Enc, err)
	}
	in := envelope.Config{ID: s.cfg.ID, Decrypter: dec, Signers: s.signerOf, Now: s.cfg.Now}
	if s.gatewayIn, err = envelope.NewReceiver(in); err != nil {
		return err
	}
	in.RequireSealed = !s.cfg.PlainAllowed // §9.1: every message encrypted
	if s.agentIn, err = envelope.NewReceiver(in); err != nil {
		return err
	}
	return s.makeFaces()
}

// signer returns the sender that signs with the key name, and its chain.
func (s *Server) signer(name string) (*envelope.Sender, []*smx509.Certificate, error) {
	key, err := s.keys.Signer(name)
	if err != nil {
		return nil, nil, err
	}
	chain, err := s.keys.Chain(name)
	if err != nil {
		return nil, nil, err
	}
	return &envelope.Sender{ID: s.cfg.ID, Key: key, Cert: chain[0], Now: s.cfg.Now}, chain, nil
}

// makeFaces makes what the ports show, as crypto.profile says: with gm the
// links take TLCP alone, and the OpenID provider both, because most browsers
// know only TLS; with intl nothing takes TLCP.
func (s *Server) makeFaces() error {
	if p := s.cfg.Crypto.Profile; p.TLS() {
		roots, err := s.keys.TLSRoots()
		if err != nil {
			return fmt.Errorf("open keys: tls root: %w", err)
		}
		s.links.tls = &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: s.certificate,
			ClientAuth:     tls.VerifyClientCertIfGiven, // enrolment has none yet; every other path demands it
			ClientCAs:      roots,
			NextProtos:     []string{"http/1.1"}, // one stream a connection: a slow pull never delays a push
			Time:           s.cfg.Now,
		}
	}
	s.login.tls = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.certificate, NextProtos: []string{"h2", "http/1.1"}, Time: s.cfg.Now}
	if !s.cfg.Crypto.Profile.TLCP() {
		return nil
	}
	roots, err := s.keys.Root(keystore.TLCPRoot)
	if err != nil {
		return fmt.Errorf("open keys: tlcp root: %w", err)
	}
	pair := func(*tlcp.ClientHelloInfo) (*tlcp.Pair, error) { return s.own.Load().pair, nil }
	s.login.tlcp = &tlcp.Config{GetCertificate: pair, NextProtos: []string{"http/1.1"}, Time: s.cfg.Now}
	mutual := &tlcp.Config{
		GetCertificate: pair, ClientAuth: tlcp.RequireAndVerifyClientCert, ClientCAs: roots,
		NextProtos: []string{"http/1.1"}, Time: s.cfg.Now, VerifyConnection: onePeer,
	}
	// Who offers no ECDHE suite may have no pair yet: it enrols. The chain has
	// the root then, of which it knows the fingerprint alone.
	s.links.tlcp = &tlcp.Config{
		GetCertificate: func(*tlcp.ClientHelloInfo) (*tlcp.Pair, error) { return s.own.Load().rooted, nil },
		ClientAuth:     tlcp.VerifyClientCertIfGiven, ClientCAs: roots,
		NextProtos: []string{"http/1.1"}, Time: s.cfg.Now, VerifyConnection: onePeer,
		GetConfigForClient: func(h *tlcp.ClientHelloInfo) (*tlcp.Config, error) {
			if slices.Contains(h.CipherSuites, tlcp.ECDHE_SM4_GCM_SM3) || slices.Contains(h.CipherSuites, tlcp.ECDHE_SM4_CBC_SM3) {
				return mutual, nil
			}
			return nil, nil
		},
	}
	return nil
}

// onePeer refuses a client whose two certificates are of two parties.
func onePeer(c tlcp.ConnectionState) error {
	if c.PeerSign == nil {
		return nil
	}
	_, err := certid.OfPair(c.PeerSign, c.PeerEnc)
	return err
}

// tlcpFingerprint is [Server.fingerprint] for TLCP: SM3 of its root. It is empty
// where TLCP is not spoken.
func (s *Server) tlcpFingerprint() string {
	if s.links.tlcp == nil {
		return ""
	}
	sum := sm3.Sum(s.tlcpRoot.Raw)
	return hex.EncodeToString(sum[:])
}

// fingerprint returns what enrolment codes carry: SHA-256 of the TLS root.
func (s *Server) fingerprint() string {
	sum := sha256.Sum256(s.tlsRoot.Raw)
	return hex.EncodeToString(sum[:])
}

// signerOf returns the signing certificate that sender was given at its
// enrolment. The certificate was issued here, so it needs no further check.
func (s *Server) signerOf(keyID, sender string) (*smx509.Certificate, error) {
	p := s.party(sender)
	if p == nil || len(p.Sign) == 0 {
		return nil, fmt.Errorf("find signer: %s is not enrolled", sender)
	}
	cert, err := smx509.ParseCertificate(p.Sign)
	if err != nil {
		return nil, fmt.Errorf("find signer: %w", err)
	}
	if envelope.KeyID(cert) != keyID {
		return nil, fmt.Errorf("find signer: %s has another certificate (it was enrolled again)", sender)
	}
	return cert, nil
}

// party returns the party that has this identifier, nil when there is none.
func (s *Server) party(id string) (p *model.Party) {
	s.view(func(st *model.State) { p = st.Parties[id] })
	return p
}

// encOf returns the certificate to which messages for p are sealed.
func encOf(p *model.Party) (*smx509.Certificate, error) {
	if len(p.Enc) == 0 {
		return nil, fmt.Errorf("seal message: %s has no encryption certificate (enrol it again)", p.ID)
	}
	return smx509.ParseCertificate(p.Enc)
}

// browserToken returns the handle in the rows of a user's browsers. It is
// stable, so a restart changes no row, and nobody else can compute it.
func browserToken(key []byte, userID string) string {
	const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	mac := hmac.New(sm3.New, key)
	mac.Write([]byte(userID))
	var out [wire.IDLength]byte
	for i, b := range mac.Sum(nil)[:len(out)] {
		out[i] = alphabet[int(b)%len(alphabet)] // a handle, never a credential: the small bias is harmless
	}
	return string(out[:])
}

func compareStrings(a, b string) int { return strings.Compare(a, b) }
