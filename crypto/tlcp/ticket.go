package tlcp

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"golang.org/x/crypto/cryptobyte"

	"github.com/yumen-zt/yumen/crypto/sm4gcm"
)

const (
	ticketKeySize  = 16
	ticketNameSize = 16
	maxTicket      = 16 << 10
	sessionFormat  = 1
)

// Session is what both sides remember of a full handshake, to resume it. It
// does not change.
type Session struct {
	suite      uint16
	master     []byte
	created    time.Time // of the full handshake
	serverName string    // SNI
	alpn       string
	peer       *peer  // nil: the client presented no certificate
	id         []byte // client: the identifier that the server gave; empty with a ticket
	ticket     []byte // client: the ticket that the server gave
}

// MarshalBinary returns the session for a store that other processes share. The
// result holds the master secret: seal it.
func (s *Session) MarshalBinary() ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	b.AddUint8(sessionFormat)
	b.AddUint16(s.suite)
	b.AddUint64(uint64(s.created.Unix()))
	b.AddUint8LengthPrefixed(bytesOf(s.master))
	b.AddUint16LengthPrefixed(bytesOf([]byte(s.serverName)))
	b.AddUint8LengthPrefixed(bytesOf([]byte(s.alpn)))
	b.AddUint8LengthPrefixed(bytesOf(s.id))
	b.AddUint16LengthPrefixed(bytesOf(s.ticket))
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		if s.peer != nil {
			for _, c := range s.peer.certs {
				b.AddUint24LengthPrefixed(bytesOf(c.Raw))
			}
		}
	})
	return b.Bytes()
}

// ParseSession is the inverse of [Session.MarshalBinary]. The certificates in
// it are verified anew when the session is used.
func ParseSession(data []byte) (*Session, error) {
	src := cryptobyte.String(data)
	var format uint8
	var created uint64
	var master, name, alpn, id, ticket, certs cryptobyte.String
	s := new(Session)
	if !src.ReadUint8(&format) || format != sessionFormat || !src.ReadUint16(&s.suite) || !src.ReadUint64(&created) ||
		!src.ReadUint8LengthPrefixed(&master) || len(master) != masterSecretLen ||
		!src.ReadUint16LengthPrefixed(&name) || !src.ReadUint8LengthPrefixed(&alpn) ||
		!src.ReadUint8LengthPrefixed(&id) || len(id) > 32 || !src.ReadUint16LengthPrefixed(&ticket) ||
		!src.ReadUint24LengthPrefixed(&certs) || !src.Empty() || suiteByID(s.suite) == nil || created > 1<<40 {
		return nil, errors.New("parse session: malformed")
	}
	s.created = time.Unix(int64(created), 0)
	s.master, s.serverName, s.alpn, s.id, s.ticket = master, string(name), string(alpn), id, ticket
	var ders [][]byte
	for !certs.Empty() {
		var der cryptobyte.String
		if !certs.ReadUint24LengthPrefixed(&der) || len(der) == 0 || len(ders) == maxChain {
			return nil, errors.New("parse session: malformed")
		}
		ders = append(ders, der)
	}
	if len(ders) > 0 {
		p, err := readPeer(ders, true)
		if err != nil {
			return nil, fmt.Errorf("parse session: %w", err)
		}
		s.peer = p
	}
	return s, nil
}

// expired reports whether s is too old, or from the future.
func (s *Session) expired(c *Config) bool {
	age := c.now().Sub(s.created)
	return age > c.lifetime() || age < -time.Minute
}

// ticketName tells keys apart; it says nothing of the key.
func ticketName(key []byte) []byte {
	sum := sm3.Sum(append([]byte("tlcp ticket key name\x00"), key...))
	return sum[:ticketNameSize]
}

// sealTicket returns s under the first ticket key: name, nonce, SM4-GCM. It
// returns nil when s is too long to be a ticket.
func (c *Config) sealTicket(s *Session) ([]byte, error) {
	plain, err := s.MarshalBinary()
	if err != nil {
		return nil, err
	}
	if len(plain) > maxTicket-ticketNameSize-sm4gcm.NonceSize-sm4gcm.Overhead {
		return nil, nil
	}
	aead, err := sm4gcm.New(c.TicketKeys[0])
	if err != nil {
		return nil, err
	}
	out := make([]byte, ticketNameSize+sm4gcm.NonceSize, ticketNameSize+sm4gcm.NonceSize+len(plain)+sm4gcm.Overhead)
	copy(out, ticketName(c.TicketKeys[0]))
	if _, err := io.ReadFull(c.rand(), out[ticketNameSize:]); err != nil {
		return nil, err
	}
	return aead.Seal(out, out[ticketNameSize:], plain, out[:ticketNameSize]), nil
}

// openTicket returns the session of a ticket, nil for one that is not ours.
// fresh reports whether the first key sealed it.
func (c *Config) openTicket(ticket []byte) (s *Session, fresh bool) {
	const head = ticketNameSize + sm4gcm.NonceSize
	if len(ticket) < head+sm4gcm.Overhead || len(ticket) > maxTicket {
		return nil, false
	}
	for i, key := range c.TicketKeys {
		if string(ticketName(key)) != string(ticket[:ticketNameSize]) {
			continue
		}
		aead, err := sm4gcm.New(key)
		if err != nil {
			return nil, false
		}
		plain, err := aead.Open(nil, ticket[ticketNameSize:head], ticket[head:], ticket[:ticketNameSize])
		if err != nil {
			return nil, false
		}
		if s, err = ParseSession(plain); err != nil {
			return nil, false
		}
		return s, i == 0
	}
	return nil, false
}
