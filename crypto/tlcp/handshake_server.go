package tlcp

import (
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/emmansun/gmsm/ecdh"
	"github.com/emmansun/gmsm/smx509"
)

// serverHandshake is the state of one handshake on the server side.
type serverHandshake struct {
	c      *Conn
	config *Config // the one for this client
	hello  *clientHello
	info   *ClientHelloInfo
	reply  *serverHello
	suite  *cipherSuite
	pair   *Pair
	log    transcript
	master []byte
	keys   *derivation // from master, once establishKeys has run

	ephemeral *ecdh.PrivateKey // ECDHE
	session   *Session         // to be resumed; nil: full handshake
	peer      *peer            // nil: the client presented no certificate
}

// serverHandshake goes through §6.4.5 as the server. The errors that are
// *AlertError go to the peer, too.
func (c *Conn) serverHandshake() error {
	if err := c.config.validateServer(); err != nil {
		return alertf(AlertInternalError, "check server config: %w", err)
	}
	h := &serverHandshake{c: c, config: c.config, log: newTranscript()}
	if err := h.readClientHello(); err != nil { // 1
		return err
	}
	if err := h.choose(); err != nil { // 2
		return err
	}
	if h.findSession() {
		return h.resume() // 3 to 5, short
	}
	if err := h.sendHello(); err != nil { // 3
		return err
	}
	if err := h.readClientKeys(); err != nil { // 4
		return err
	}
	return h.finish() // 5
}

// 1: the hello, and the Config for it.
func (h *serverHandshake) readClientHello() error {
	msg, err := h.c.expect(typeClientHello)
	if err != nil {
		return err
	}
	h.hello = new(clientHello)
	if !h.hello.unmarshal(msg[4:]) {
		return alertf(AlertDecodeError, "read client hello: malformed")
	}
	h.log.add(msg)
	if v := h.hello.version; v>>8 != Version>>8 || v < Version {
		return alertf(AlertProtocolVersion, "read client hello: version 0x%04x, not 0x%04x", v, Version)
	}
	if !slices.Contains(h.hello.compressions, 0) {
		return alertf(AlertIllegalParameter, "read client hello: no null compression")
	}
	h.info = &ClientHelloInfo{
		ServerName: strings.ToLower(h.hello.serverName), SupportedProtos: h.hello.alpn,
		CipherSuites: h.hello.suites, Conn: h.c.conn,
	}
	if get := h.config.GetConfigForClient; get != nil {
		config, err := get(h.info)
		if err != nil {
			return callbackFault("choose config", err)
		}
		if config != nil {
			if err := config.validateServer(); err != nil {
				return alertf(AlertInternalError, "check server config: %w", err)
			}
			h.config, h.c.config = config, config
		}
	}
	return nil
}

// callbackFault lets a callback choose the alert by returning an *AlertError.
func callbackFault(what string, err error) error {
	var a *AlertError
	if errors.As(err, &a) && !a.Remote && a.Err != nil {
		return a
	}
	return alertf(AlertInternalError, what+": %w", err)
}

// 2: certificates, suite, protocol.
func (h *serverHandshake) choose() error {
	if err := h.choosePair(); err != nil {
		return err
	}
	ecdhe := h.config.ClientAuth == RequireAndVerifyClientCert && h.pair.agreer != nil
	for _, s := range h.config.enabled(ecdhe) {
		if slices.Contains(h.hello.suites, s.id) {
			h.suite = s
			break
		}
	}
	if h.suite == nil {
		return alertf(AlertHandshakeFailure, "choose cipher suite: the client offers 0x%04x, none of which is enabled", h.hello.suites)
	}
	random, err := newRandom(h.config)
	if err != nil {
		return err
	}
	h.reply = &serverHello{version: Version, random: random, suite: h.suite.id}
	if len(h.hello.alpn) == 0 || len(h.config.NextProtos) == 0 {
		return nil
	}
	for _, p := range h.config.NextProtos {
		if slices.Contains(h.hello.alpn, p) {
			h.reply.alpn = p
			return nil
		}
	}
	return alertf(AlertNoApplicationProtocol, "choose protocol: the client speaks %q", h.hello.alpn)
}

func (h *serverHandshake) choosePair() error {
	if get := h.config.GetCertificate; get != nil {
		pair, err := get(h.info)
		if err != nil {
			return callbackFault("choose certificate", err)
		}
		if pair != nil {
			h.pair = pair
			return nil
		}
	}
	if len(h.config.Certificates) == 0 {
		return alertf(AlertUnrecognizedName, "choose certificate: none for %q", h.info.ServerName)
	}
	h.pair = h.config.Certificates[0]
	if h.info.ServerName != "" && len(h.config.Certificates) > 1 {
		for _, p := range h.config.Certificates {
			if p.signLeaf.VerifyHostname(h.info.ServerName) == nil {
				h.pair = p
				break
			}
		}
	}
	return nil
}

// newRandom makes a hello's random: the time and 28 random bytes (§6.4.5.2.1).
func newRandom(c *Config) ([]byte, error) {
	b := make([]byte, 32)
	binary.BigEndian.PutUint32(b, uint32(c.now().Unix()))
	if _, err := io.ReadFull(c.rand(), b[4:]); err != nil {
		return nil, alertf(AlertInternalError, "make random: %w", err)
	}
	return b, nil
}

// 3: our flight, to ServerHelloDone.
func (h *serverHandshake) sendHello() error {
	h.reply.givesTicket = h.tickets()
	if h.config.SessionCache != nil && !h.reply.givesTicket {
		h.reply.sessionID = make([]byte, 32)
		if _, err := io.ReadFull(h.config.rand(), h.reply.sessionID); err != nil {
			return alertf(AlertInternalError, "make session id: %w", err)
		}
	}
	skx := new(serverKeyExchange)
	if h.suite.ecdhe {
		var err error
		if h.ephemeral, err = newEphemeral(h.config.rand()); err != nil {
			return alertf(AlertInternalError, "make ephemeral key: %w", err)
		}
		skx.params = ecdheParams(h.ephemeral.PublicKey().Bytes())
	}
	var err error
	if skx.signature, err = h.pair.sign(h.config, signedParams(h.hello.random, h.reply.random, skx.params, h.pair.encLeaf)); err != nil {
		return alertf(AlertInternalError, "sign key exchange: %w", err)
	}
	flight := [][]byte{h.reply.marshal(), (&certificateMsg{h.pair.message}).marshal(), skx.marshal()}
	if h.config.ClientAuth != NoClientCert {
		flight = append(flight, (&certificateRequest{
			types: []byte{certTypeECDSASign, certTypeRSASign}, authorities: h.config.clientIssuers(),
		}).marshal())
	}
	flight = append(flight, []byte{typeServerHelloDone, 0, 0, 0})
	return h.send(flight...)
}

// send queues messages, and sends what is queued.
func (h *serverHandshake) send(flight ...[]byte) error {
	for _, msg := range flight {
		h.log.add(msg)
		if err := h.c.writeMessage(msg); err != nil {
			return err
		}
	}
	return h.c.flush()
}

// 4: the client's certificates, key exchange and proof.
func (h *serverHandshake) readClientKeys() error {
	if h.config.ClientAuth != NoClientCert {
		if err := h.readCertificates(); err != nil {
			return err
		}
	}
	msg, err := h.c.expect(typeClientKeyExchange)
	if err != nil {
		return err
	}
	var ckx clientKeyExchange
	if !ckx.unmarshal(msg[4:]) {
		return alertf(AlertDecodeError, "read client key exchange: malformed")
	}
	h.log.add(msg)
	premaster, err := h.premaster(ckx.exchange)
	if err != nil {
		return err
	}
	h.master = masterSecret(premaster, h.hello.random, h.reply.random)
	clear(premaster)
	if h.peer != nil {
		if err := h.readProof(); err != nil {
			return err
		}
	}
	return h.verifyConnection(false)
}

func (h *serverHandshake) premaster(body []byte) ([]byte, error) {
	if !h.suite.ecdhe {
		secret, err := openPremaster(h.config.rand(), h.pair, body, h.hello.version)
		if err != nil {
			return nil, alertf(AlertInternalError, "make premaster secret: %w", err)
		}
		return secret, nil
	}
	point, ok := parseClientECDHE(body)
	if !ok {
		return nil, alertf(AlertDecodeError, "read client key exchange: no point of the SM2 curve")
	}
	secret, err := agree(h.pair, h.ephemeral, h.peer.enc, point, false)
	if err != nil {
		return nil, alertf(AlertIllegalParameter, "agree on keys: %w", err)
	}
	return secret, nil
}

func (h *serverHandshake) readCertificates() error {
	msg, err := h.c.expect(typeCertificate)
	if err != nil {
		return err
	}
	var m certificateMsg
	if !m.unmarshal(msg[4:]) {
		return alertf(AlertDecodeError, "read client certificates: malformed")
	}
	h.log.add(msg)
	if len(m.certificates) == 0 {
		if h.config.ClientAuth == RequireAndVerifyClientCert {
			return &AlertError{Alert: AlertHandshakeFailure, Err: ErrNoClientCertificate}
		}
		return nil
	}
	if h.peer, err = readPeer(m.certificates, h.config.LaxUsage); err != nil {
		return err
	}
	if h.suite.ecdhe && h.peer.enc == nil {
		return alertf(AlertBadCertificate, "check client certificates: none for encryption, which ECDHE needs")
	}
	return h.peer.verify(h.config, h.config.ClientCAs, "", smx509.ExtKeyUsageClientAuth)
}

// ErrNoClientCertificate is what a server that requires a client's certificates
// found wrong when none came.
var ErrNoClientCertificate = errors.New("the client presented no certificate")

// readProof checks that the client has the key of its signing certificate: its
// signature over the SM3 digest of all messages so far (§6.4.5.7).
func (h *serverHandshake) readProof() error {
	digest := h.log.sum()
	msg, err := h.c.expect(typeCertificateVerify)
	if err != nil {
		return err
	}
	var m certificateVerify
	if !m.unmarshal(msg[4:]) {
		return alertf(AlertDecodeError, "read certificate verify: malformed")
	}
	if !verifySignature(h.peer.sign, digest, m.signature) {
		return alertf(AlertDecryptError, "check certificate verify: the signature is not the client certificate's (of SM3 of the messages)")
	}
	h.log.add(msg)
	return nil
}

// 5: keys into use, both Finished.
func (h *serverHandshake) finish() error {
	if err := h.establishKeys(); err != nil {
		return err
	}
	if err := h.readFinished(); err != nil {
		return err
	}
	var ticket []byte
	session := h.newSession()
	if h.reply.givesTicket {
		var err error
		if ticket, err = h.config.sealTicket(session); err != nil {
			return alertf(AlertInternalError, "make ticket: %w", err)
		}
	}
	// Before the Finished goes out: the client may come back at once.
	if len(h.reply.sessionID) > 0 {
		h.config.SessionCache.Put(string(h.reply.sessionID), session)
	}
	return h.sendFinished(ticket)
}

func (h *serverHandshake) establishKeys() error {
	h.keys = newDerivation(h.master)
	k := keysFromMaster(h.suite, h.keys, h.hello.random, h.reply.random)
	var err error
	if h.c.in.next, err = h.suite.protect(k.clientKey, k.clientMAC, k.clientIV, true); err == nil {
		h.c.out.next, err = h.suite.protect(k.serverKey, k.serverMAC, k.serverIV, false)
	}
	if err != nil {
		return alertf(AlertInternalError, "make keys: %w", err)
	}
	return nil
}

func (h *serverHandshake) readFinished() error {
	return h.c.readFinished(&h.log, h.keys, labelClientFinished)
}

// sendFinished sends the ticket that the hello promised, ChangeCipherSpec and
// Finished.
func (h *serverHandshake) sendFinished(ticket []byte) error {
	if h.reply.givesTicket {
		msg := (&newSessionTicket{uint32(h.config.lifetime().Seconds()), ticket}).marshal()
		h.log.add(msg)
		if err := h.c.writeMessage(msg); err != nil {
			return err
		}
	}
	if err := h.c.writeChangeCipherSpec(); err != nil {
		return err
	}
	return h.send((&finishedMsg{h.log.finished(h.keys, labelServerFinished)}).marshal())
}

// readFinished reads ChangeCipherSpec and the peer's Finished, and checks it.
func (c *Conn) readFinished(log *transcript, master *derivation, label string) error {
	if err := c.readChangeCipherSpec(); err != nil {
		return err
	}
	want := log.finished(master, label)
	msg, err := c.expect(typeFinished)
	if err != nil {
		return err
	}
	var m finishedMsg
	if !m.unmarshal(msg[4:]) {
		return alertf(AlertDecodeError, "read finished: malformed")
	}
	if !hmac.Equal(m.verifyData, want) {
		return alertf(AlertDecryptError, "check finished: the peer saw another handshake")
	}
	if len(c.hand) > 0 {
		return alertf(AlertUnexpectedMessage, "read finished: more handshake bytes behind it")
	}
	log.add(msg)
	return nil
}

// verifyConnection fills in the state and asks Config.VerifyConnection.
func (h *serverHandshake) verifyConnection(resumed bool) error {
	return h.c.agreed(h.config, ConnectionState{
		DidResume: resumed, CipherSuite: h.suite.id,
		ServerName: h.info.ServerName, NegotiatedProtocol: h.reply.alpn,
	}, h.peer)
}

func (c *Conn) agreed(config *Config, s ConnectionState, p *peer) error {
	s.Version = Version
	if p != nil {
		s.PeerCertificates, s.PeerSign, s.PeerEnc, s.VerifiedChain = p.certs, p.sign, p.enc, p.signChain
	}
	if config.VerifyConnection != nil {
		if err := config.VerifyConnection(s); err != nil {
			return alertf(AlertBadCertificate, "verify connection: %w", err)
		}
	}
	s.PeerCertificates, s.PeerEnc, s.VerifiedChain = nil, nil, nil
	c.state = s
	return nil
}
