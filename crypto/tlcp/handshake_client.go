package tlcp

import (
	"bytes"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/emmansun/gmsm/smx509"
)

// clientHandshake is the state of one handshake on the client side.
type clientHandshake struct {
	c       *Conn
	config  *Config
	hello   *clientHello
	reply   *serverHello
	suite   *cipherSuite
	pair    *Pair // what we present; nil: nothing
	asked   *certificateRequest
	log     transcript
	master  []byte
	keys    *derivation // from master, once establishKeys has run
	peer    *peer
	session *Session // offered
}

// clientHandshake goes through §6.4.5 as the client. The errors that are
// *AlertError go to the peer, too.
func (c *Conn) clientHandshake() error {
	if err := c.config.validateClient(); err != nil {
		return alertf(AlertInternalError, "check client config: %w", err)
	}
	h := &clientHandshake{c: c, config: c.config, log: newTranscript()}
	if err := h.sendHello(); err != nil { // 1
		return err
	}
	resumed, err := h.readServerHello() // 2
	if err != nil {
		return err
	}
	if resumed {
		return h.resume() // 3 to 5, short
	}
	params, err := h.readServerKeys() // 3
	if err != nil {
		return err
	}
	if err := h.sendKeys(params); err != nil { // 4
		return err
	}
	return h.finish() // 5
}

// 1: the hello, with a session to resume when there is one.
func (h *clientHandshake) sendHello() error {
	h.hello = &clientHello{version: Version, compressions: []byte{0}, noExtensions: h.config.NoExtensions}
	ecdhe := slices.ContainsFunc(h.config.Certificates, func(p *Pair) bool { return p.agreer != nil })
	enabled := h.config.enabled(ecdhe)
	for _, s := range enabled {
		h.hello.suites = append(h.hello.suites, s.id)
	}
	if len(enabled) == 0 {
		return alertf(AlertInternalError, "choose cipher suites: only ECDHE is enabled, and there is no certificate pair for it")
	}
	if !h.config.NoExtensions {
		h.hello.serverName = sni(h.config.ServerName)
		h.hello.alpn = h.config.NextProtos
		h.hello.offersTicket = h.config.OfferTickets && h.config.SessionCache != nil
	}
	var err error
	if h.hello.random, err = newRandom(h.config); err != nil {
		return err
	}
	if err := h.offerSession(enabled); err != nil {
		return err
	}
	return h.send(h.hello.marshal())
}

// sni returns what stands in the server_name extension: names only.
func sni(host string) string {
	host, _, _ = strings.Cut(strings.TrimSuffix(host, "."), "%")
	if net.ParseIP(strings.Trim(host, "[]")) != nil {
		return ""
	}
	return host
}

// wantName is whose the server's certificates must be; empty: anybody's.
func (h *clientHandshake) wantName() string {
	if h.config.SkipServerName {
		return ""
	}
	return h.config.ServerName
}

// cacheKey names the server in the session cache.
func (h *clientHandshake) cacheKey() string {
	if h.config.ServerName != "" {
		return h.config.ServerName
	}
	return h.c.conn.RemoteAddr().String()
}

func (h *clientHandshake) offerSession(enabled []*cipherSuite) error {
	if h.config.SessionCache == nil || h.config.PinnedRoot != nil {
		return nil
	}
	s := h.config.SessionCache.Get(h.cacheKey())
	if s == nil || s.peer == nil {
		return nil
	}
	p, err := s.peer.stillGood(h.config, h.config.RootCAs, h.wantName(), smx509.ExtKeyUsageServerAuth)
	usable := err == nil && !s.expired(h.config) && slices.Contains(enabled, suiteByID(s.suite))
	if !usable || len(s.id) == 0 && !h.hello.offersTicket {
		h.config.SessionCache.Put(h.cacheKey(), nil)
		return nil
	}
	h.session, h.peer = s, p
	h.hello.sessionID, h.hello.ticket = s.id, s.ticket
	if len(s.ticket) > 0 {
		// The server says by this identifier that it takes the ticket.
		h.hello.sessionID = make([]byte, 32)
		if _, err := io.ReadFull(h.config.rand(), h.hello.sessionID); err != nil {
			return alertf(AlertInternalError, "make session id: %w", err)
		}
	}
	return nil
}

// send queues messages, and sends what is queued.
func (h *clientHandshake) send(flight ...[]byte) error {
	for _, msg := range flight {
		h.log.add(msg)
		if err := h.c.writeMessage(msg); err != nil {
			return err
		}
	}
	return h.c.flush()
}

// 2: what the server chose; it must be something that we offered.
func (h *clientHandshake) readServerHello() (resumed bool, err error) {
	msg, err := h.c.expect(typeServerHello)
	if err != nil {
		return false, err
	}
	h.reply = new(serverHello)
	if !h.reply.unmarshal(msg[4:]) {
		return false, alertf(AlertDecodeError, "read server hello: malformed")
	}
	h.log.add(msg)
	r := h.reply
	h.suite = suiteByID(r.suite)
	switch {
	case r.version != Version:
		return false, alertf(AlertProtocolVersion, "read server hello: version 0x%04x, not 0x%04x", r.version, Version)
	case h.suite == nil || !slices.Contains(h.hello.suites, r.suite):
		return false, alertf(AlertIllegalParameter, "read server hello: suite 0x%04x was not offered", r.suite)
	case r.compression != 0:
		return false, alertf(AlertIllegalParameter, "read server hello: compression %d was not offered", r.compression)
	case r.unasked, r.givesTicket && !h.hello.offersTicket, r.ackName && h.hello.serverName == "":
		return false, alertf(AlertUnsupportedExtension, "read server hello: an extension that was not offered")
	case r.alpn != "" && !slices.Contains(h.hello.alpn, r.alpn):
		return false, alertf(AlertIllegalParameter, "read server hello: protocol %q was not offered", r.alpn)
	}
	resumed = h.session != nil && bytes.Equal(r.sessionID, h.hello.sessionID)
	if resumed && r.suite != h.session.suite {
		return false, alertf(AlertIllegalParameter, "read server hello: suite 0x%04x for a session with 0x%04x", r.suite, h.session.suite)
	}
	if !resumed {
		h.peer = nil
	}
	return resumed, nil
}

// 3: the server's certificates and keys, to ServerHelloDone.
func (h *clientHandshake) readServerKeys() (params []byte, err error) {
	if err := h.readCertificates(); err != nil {
		return nil, err
	}
	msg, err := h.c.expect(typeServerKeyExchange)
	if err != nil {
		return nil, err
	}
	var skx serverKeyExchange
	if !skx.unmarshal(msg[4:], h.suite.ecdhe) {
		return nil, alertf(AlertDecodeError, "read server key exchange: malformed")
	}
	h.log.add(msg)
	if !verifySignature(h.peer.sign, signedParams(h.hello.random, h.reply.random, skx.params, h.peer.enc), skx.signature) {
		return nil, alertf(AlertDecryptError, "check server key exchange: the signature is not the server certificate's")
	}
	kind, msg, err := h.c.readMessage()
	if err != nil {
		return nil, err
	}
	if kind == typeCertificateRequest {
		h.asked = new(certificateRequest)
		if !h.asked.unmarshal(msg[4:]) {
			return nil, alertf(AlertDecodeError, "read certificate request: malformed")
		}
		h.log.add(msg)
		if kind, msg, err = h.c.readMessage(); err != nil {
			return nil, err
		}
	}
	if kind != typeServerHelloDone {
		return nil, unexpected(kind, typeServerHelloDone)
	}
	if len(msg) != 4 {
		return nil, alertf(AlertDecodeError, "read server hello done: malformed")
	}
	h.log.add(msg)
	return skx.params, nil
}

func (h *clientHandshake) readCertificates() error {
	msg, err := h.c.expect(typeCertificate)
	if err != nil {
		return err
	}
	var m certificateMsg
	if !m.unmarshal(msg[4:]) || len(m.certificates) == 0 {
		return alertf(AlertDecodeError, "read server certificates: malformed")
	}
	h.log.add(msg)
	if h.peer, err = readPeer(m.certificates, h.config.LaxUsage); err != nil {
		return err
	}
	if h.peer.enc == nil {
		return alertf(AlertUnsupportedCertificate, "check server certificates: none is for encryption")
	}
	roots := h.config.RootCAs
	if pinned := h.config.PinnedRoot; pinned != nil {
		roots = nil
		for _, c := range h.peer.certs[1:] {
			if c.IsCA && pinned(c) {
				roots = smx509.NewCertPool()
				roots.AddCert(c)
				break
			}
		}
		if roots == nil {
			return alertf(AlertUnknownCA, "check server certificates: the pinned root is not among them")
		}
	}
	return h.peer.verify(h.config, roots, h.wantName(), smx509.ExtKeyUsageServerAuth)
}

// 4: our certificates, key exchange and proof. They stay queued until Finished
// follows.
func (h *clientHandshake) sendKeys(serverParams []byte) error {
	if err := h.verifyConnection(false); err != nil {
		return err
	}
	h.choosePair()
	var flight [][]byte
	if h.asked != nil {
		var m certificateMsg
		if h.pair != nil {
			m.certificates = h.pair.message
		}
		flight = append(flight, m.marshal())
	}
	premaster, exchange, err := h.premaster(serverParams)
	if err != nil {
		return err
	}
	h.master = masterSecret(premaster, h.hello.random, h.reply.random)
	clear(premaster)
	flight = append(flight, (&clientKeyExchange{exchange}).marshal())
	for _, msg := range flight {
		h.log.add(msg)
		if err := h.c.writeMessage(msg); err != nil {
			return err
		}
	}
	if h.asked == nil || h.pair == nil {
		return nil
	}
	sig, err := h.pair.sign(h.config, h.log.sum())
	if err != nil {
		return alertf(AlertInternalError, "sign certificate verify: %w", err)
	}
	msg := (&certificateVerify{sig}).marshal()
	h.log.add(msg)
	return h.c.writeMessage(msg)
}

// choosePair takes the first pair that an authority of the server's list
// issued, else the first.
func (h *clientHandshake) choosePair() {
	if h.asked == nil || len(h.config.Certificates) == 0 {
		return
	}
	h.pair = h.config.Certificates[0]
	for _, p := range h.config.Certificates {
		if h.suite.ecdhe && p.agreer == nil {
			continue
		}
		if slices.ContainsFunc(p.issuers, func(i []byte) bool { return contains(h.asked.authorities, i) }) {
			h.pair = p
			return
		}
	}
}

func (h *clientHandshake) premaster(serverParams []byte) (secret, exchange []byte, err error) {
	if !h.suite.ecdhe {
		if secret, err = newPremaster(h.config.rand()); err == nil {
			exchange, err = sealPremaster(h.config.rand(), h.peer.enc, secret)
		}
		if err != nil {
			return nil, nil, alertf(AlertInternalError, "make premaster secret: %w", err)
		}
		return secret, exchange, nil
	}
	if h.pair == nil {
		return nil, nil, alertf(AlertHandshakeFailure, "agree on keys: the server chose ECDHE and asks for no certificate")
	}
	ephemeral, err := newEphemeral(h.config.rand())
	if err != nil {
		return nil, nil, alertf(AlertInternalError, "make ephemeral key: %w", err)
	}
	point := serverParams[len(serverParams)-pointLen:]
	if secret, err = agree(h.pair, ephemeral, h.peer.enc, point, true); err != nil {
		return nil, nil, alertf(AlertIllegalParameter, "agree on keys: %w", err)
	}
	return secret, clientECDHE(ephemeral.PublicKey().Bytes(), h.config.ECDHEVector), nil
}

// 5: keys into use, both Finished.
func (h *clientHandshake) finish() error {
	if err := h.establishKeys(); err != nil {
		return err
	}
	if err := h.sendFinished(); err != nil {
		return err
	}
	ticket, err := h.readTicket()
	if err != nil {
		return err
	}
	if err := h.c.readFinished(&h.log, h.keys, labelServerFinished); err != nil {
		return err
	}
	if h.config.SessionCache != nil && (len(ticket) > 0 || len(h.reply.sessionID) > 0) {
		h.config.SessionCache.Put(h.cacheKey(), &Session{
			suite: h.suite.id, master: h.master, created: h.config.now(), serverName: h.config.ServerName,
			alpn: h.reply.alpn, peer: h.peer, id: h.reply.sessionID, ticket: ticket,
		})
	}
	return nil
}

// resume is the short handshake: the server finishes first.
func (h *clientHandshake) resume() error {
	h.master = h.session.master
	if err := h.verifyConnection(true); err != nil {
		return err
	}
	if err := h.establishKeys(); err != nil {
		return err
	}
	ticket, err := h.readTicket()
	if err != nil {
		return err
	}
	if err := h.c.readFinished(&h.log, h.keys, labelServerFinished); err != nil {
		return err
	}
	if err := h.sendFinished(); err != nil {
		return err
	}
	if len(ticket) > 0 {
		renewed := *h.session
		renewed.ticket = ticket
		h.config.SessionCache.Put(h.cacheKey(), &renewed)
	}
	return nil
}

func (h *clientHandshake) readTicket() ([]byte, error) {
	if !h.reply.givesTicket {
		return nil, nil
	}
	msg, err := h.c.expect(typeNewSessionTicket)
	if err != nil {
		return nil, err
	}
	var m newSessionTicket
	if !m.unmarshal(msg[4:]) {
		return nil, alertf(AlertDecodeError, "read session ticket: malformed")
	}
	h.log.add(msg)
	return m.ticket, nil
}

func (h *clientHandshake) establishKeys() error {
	h.keys = newDerivation(h.master)
	k := keysFromMaster(h.suite, h.keys, h.hello.random, h.reply.random)
	var err error
	if h.c.out.next, err = h.suite.protect(k.clientKey, k.clientMAC, k.clientIV, false); err == nil {
		h.c.in.next, err = h.suite.protect(k.serverKey, k.serverMAC, k.serverIV, true)
	}
	if err != nil {
		return alertf(AlertInternalError, "make keys: %w", err)
	}
	return nil
}

func (h *clientHandshake) sendFinished() error {
	if err := h.c.writeChangeCipherSpec(); err != nil {
		return err
	}
	return h.send((&finishedMsg{h.log.finished(h.keys, labelClientFinished)}).marshal())
}

func (h *clientHandshake) verifyConnection(resumed bool) error {
	return h.c.agreed(h.config, ConnectionState{
		DidResume: resumed, CipherSuite: h.suite.id,
		ServerName: h.config.ServerName, NegotiatedProtocol: h.reply.alpn,
	}, h.peer)
}
