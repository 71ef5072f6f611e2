package tlcp

import (
	"slices"

	"github.com/emmansun/gmsm/smx509"
)

// The server's side of resumption. What a full handshake would refuse today is
// not resumed: suites, names, certificates and their revocation are looked at
// again, and a full handshake follows when one of them fails.

// tickets reports whether this handshake is to end with a ticket.
func (h *serverHandshake) tickets() bool {
	return h.hello.offersTicket && len(h.config.TicketKeys) > 0
}

// findSession looks for a session that the client holds and we accept.
func (h *serverHandshake) findSession() bool {
	var s *Session
	fresh := true
	if h.tickets() && len(h.hello.ticket) > 0 {
		s, fresh = h.config.openTicket(h.hello.ticket)
	}
	if s == nil && len(h.hello.sessionID) > 0 && h.config.SessionCache != nil {
		s, fresh = h.config.SessionCache.Get(string(h.hello.sessionID)), true
	}
	if s == nil || s.expired(h.config) || s.serverName != h.info.ServerName || !slices.Contains(h.hello.suites, s.suite) {
		return false
	}
	suite := suiteByID(s.suite)
	ecdhe := h.config.ClientAuth == RequireAndVerifyClientCert && h.pair.agreer != nil
	if suite == nil || !slices.Contains(h.config.enabled(ecdhe), suite) {
		return false
	}
	p := s.peer
	switch {
	case p == nil && h.config.ClientAuth == RequireAndVerifyClientCert, p != nil && h.config.ClientAuth == NoClientCert:
		return false
	case p != nil:
		var err error
		if p, err = p.stillGood(h.config, h.config.ClientCAs, "", smx509.ExtKeyUsageClientAuth); err != nil {
			return false
		}
	}
	h.session, h.peer, h.suite, h.master = s, p, suite, s.master
	h.reply.suite = suite.id
	h.reply.sessionID = h.hello.sessionID
	h.reply.givesTicket = !fresh // move it to the key of today
	return true
}

// resume is the short handshake: we finish first.
func (h *serverHandshake) resume() error {
	if err := h.verifyConnection(true); err != nil {
		return err
	}
	if err := h.establishKeys(); err != nil {
		return err
	}
	var ticket []byte
	if h.reply.givesTicket {
		var err error
		if ticket, err = h.config.sealTicket(h.session); err != nil {
			return alertf(AlertInternalError, "make ticket: %w", err)
		}
	}
	msg := h.reply.marshal()
	h.log.add(msg)
	if err := h.c.writeMessage(msg); err != nil {
		return err
	}
	if err := h.sendFinished(ticket); err != nil {
		return err
	}
	return h.readFinished()
}

func (h *serverHandshake) newSession() *Session {
	return &Session{
		suite: h.suite.id, master: h.master, created: h.config.now(),
		serverName: h.info.ServerName, alpn: h.reply.alpn, peer: h.peer,
	}
}
