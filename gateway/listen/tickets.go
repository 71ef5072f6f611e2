package listen

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"time"
)

// tlsTicketLife is how long after its full handshake a TLS session may be resumed.
// crypto/tls tells clients a week and would take them for so long.
const tlsTicketLife = 24 * time.Hour

var ticketMark = []byte("yumen full handshake ")

// ageTickets makes c refuse tickets that are older than tlsTicketLife: their client
// gets a full handshake. c keeps ticket keys of its own, so it must not be a
// config that another one was cloned from afterwards.
func ageTickets(c *tls.Config) {
	c.WrapSession = func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
		if madeAt(s).IsZero() {
			s.Extra = append(s.Extra, binary.BigEndian.AppendUint64(bytes.Clone(ticketMark), uint64(time.Now().Unix())))
		}
		return c.EncryptTicket(cs, s)
	}
	c.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		s, err := c.DecryptTicket(ticket, cs)
		if err != nil || s == nil {
			return nil, err
		}
		if !young(s, time.Now()) {
			return nil, nil // a full handshake
		}
		return s, nil
	}
}

// madeAt returns when the full handshake of s was; zero when s does not say.
func madeAt(s *tls.SessionState) time.Time {
	for _, e := range s.Extra {
		if b, ok := bytes.CutPrefix(e, ticketMark); ok && len(b) == 8 {
			return time.Unix(int64(binary.BigEndian.Uint64(b)), 0)
		}
	}
	return time.Time{}
}

// young reports whether s may still be resumed.
func young(s *tls.SessionState, now time.Time) bool {
	age := now.Sub(madeAt(s))
	return age >= -time.Second && age <= tlsTicketLife // stamped to the second
}
