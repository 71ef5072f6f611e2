package tlcp

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/emmansun/gmsm/smx509"
)

// Version is the protocol version of GB/T 38636-2020, the only one.
const Version uint16 = 0x0101

// Bounds, in bytes.
const (
	maxPlaintext  = 16384        // of a record (§6.3.3)
	maxCiphertext = 16384 + 2048 // of a record
	recordHeader  = 5

	maxHandshake      = 64 << 10  // of a handshake message
	maxCertificateMsg = 128 << 10 // of a Certificate message
	maxChain          = 16        // certificates in one message
	maxIgnored        = 16        // records in a row that carry nothing: warnings, empty fragments
)

type recordType uint8

const (
	recordChangeCipherSpec recordType = 20
	recordAlert            recordType = 21
	recordHandshake        recordType = 22
	recordApplicationData  recordType = 23
)

// Handshake message types (§6.4.5.1).
const (
	typeHelloRequest       uint8 = 0
	typeClientHello        uint8 = 1
	typeServerHello        uint8 = 2
	typeNewSessionTicket   uint8 = 4
	typeCertificate        uint8 = 11
	typeServerKeyExchange  uint8 = 12
	typeCertificateRequest uint8 = 13
	typeServerHelloDone    uint8 = 14
	typeCertificateVerify  uint8 = 15
	typeClientKeyExchange  uint8 = 16
	typeFinished           uint8 = 20
)

// Extensions, by GM/T 0024-2023 annex A.
const (
	extServerName          uint16 = 0
	extSupportedGroups     uint16 = 10
	extSignatureAlgorithms uint16 = 13
	extALPN                uint16 = 16
	extSessionTicket       uint16 = 35
)

const (
	curveSM2 uint16 = 0x0029 // as in RFC 8998
	sigSM2   uint16 = 0x0704 // hash 7 = SM3, signature 4 = SM2: GM/T 0024-2023 A.5
	sigSM2v8 uint16 = 0x0708 // the code point of RFC 8998, which some peers demand
)

// ClientAuthType says what a server asks of its clients.
type ClientAuthType uint8

// The policies, as in crypto/tls. There is none that takes a certificate
// without verifying it.
const (
	NoClientCert               ClientAuthType = iota // do not ask
	VerifyClientCertIfGiven                          // ask; a client without one may come in
	RequireAndVerifyClientCert                       // ask; the ECDHE suites need this
)

// Config is what a client or server needs. The zero value of an optional field
// selects its default. A Config must not change once a connection uses it; it
// may be used by any number of connections at once.
type Config struct {
	// Rand is the source of keys, nonces and randoms. Default crypto/rand.
	Rand io.Reader
	// Time is the clock for certificates and sessions. Default time.Now.
	Time func() time.Time

	// Certificates are the pairs to present. A server takes the first whose
	// sign certificate fits the name that the client asked for, else the first.
	// A client takes the first that an authority named by the server issued,
	// else the first. Required for a server without GetCertificate.
	Certificates []*Pair
	// GetCertificate, if set, is asked first by a server; nil without an error
	// falls back to Certificates.
	GetCertificate func(*ClientHelloInfo) (*Pair, error)
	// GetConfigForClient, if set, may give a server another Config for this
	// client; nil without an error keeps this one.
	GetConfigForClient func(*ClientHelloInfo) (*Config, error)

	// RootCAs are the authorities of servers. Required for a client: SM2
	// authorities do not stand among the system's.
	RootCAs *smx509.CertPool
	// PinnedRoot, if set, takes the place of RootCAs for a client's first
	// contact, when it knows no more of the root than a digest: the authorities
	// among the certificates that the server sent for which it returns true are
	// the roots. Sessions of such a client are not resumed.
	PinnedRoot func(*smx509.Certificate) bool
	// ClientCAs are the authorities of clients, and are named in the
	// CertificateRequest. Required when ClientAuth asks.
	ClientCAs *smx509.CertPool
	// ClientAuth is what a server asks of clients. Default NoClientCert.
	ClientAuth ClientAuthType
	// ServerName is the host whose certificates a client expects, and is sent
	// as SNI when it is a name. Required for a client, except by SkipServerName;
	// [Dial] sets it from the address.
	ServerName string
	// SkipServerName lets a client accept a verified certificate of any name;
	// ServerName, if set, is still sent as SNI. VerifyConnection, which is required then, must look who the peer is.
	SkipServerName bool
	// LaxUsage accepts certificates that lack a key usage, or have an extended
	// key usage for something else: many that are in use do. The signing and
	// the encryption certificate must still be two.
	LaxUsage bool
	// CheckRevocation, if set, is asked for each certificate of a verified
	// chain but the root, also when a session is resumed; an error refuses the
	// peer with certificate_revoked. See [CRLs].
	CheckRevocation func(cert, issuer *smx509.Certificate) error
	// VerifyConnection, if set, has the last word before the connection is
	// used, also when a session is resumed; an error refuses the peer with
	// bad_certificate.
	VerifyConnection func(ConnectionState) error

	// NextProtos are the ALPN protocols, best first. A server refuses clients
	// that offer only others; a client that offers none is not refused.
	NextProtos []string
	// CipherSuites are the suites to use, best first; a server goes by its own
	// order. Default: ECDHE before ECC, GCM before CBC; ECDHE only where it can
	// work (a client that has a Pair, a server that requires one of clients).
	CipherSuites []uint16

	// SessionCache keeps sessions for resumption: a server's by session
	// identifier, a client's by server name. Default: no resumption. Faces that
	// ask different things of clients should not share one.
	SessionCache SessionCache
	// SessionLifetime is how long after its full handshake a session may be
	// resumed. Default 1 hour.
	SessionLifetime time.Duration
	// TicketKeys, if set, let a server give tickets to clients that offer the
	// extension, which the standard does not know. The first key seals, all
	// open; each has 16 bytes. Faces must not share keys.
	TicketKeys [][]byte
	// OfferTickets makes a client offer tickets when it has a SessionCache.
	// Some servers end the connection at this extension.
	OfferTickets bool

	// NoExtensions makes a client send a ClientHello without any: no SNI, no
	// ALPN, no ticket, for servers that refuse extensions.
	NoExtensions bool
	// ECDHEVector makes a client put a length before its ECDHE parameters, as
	// the standard's letter has it and GmSSL wants it; other servers know only
	// the form without. Servers accept both.
	ECDHEVector bool

	issuersOnce sync.Once
	issuers     [][]byte // subjects of ClientCAs
}

const defaultSessionLifetime = time.Hour

// Clone returns a copy of c that may be changed.
func (c *Config) Clone() *Config {
	if c == nil {
		return nil
	}
	return &Config{
		Rand: c.Rand, Time: c.Time,
		Certificates: slices.Clone(c.Certificates), GetCertificate: c.GetCertificate, GetConfigForClient: c.GetConfigForClient,
		RootCAs: c.RootCAs, PinnedRoot: c.PinnedRoot, ClientCAs: c.ClientCAs, ClientAuth: c.ClientAuth,
		ServerName: c.ServerName, SkipServerName: c.SkipServerName, LaxUsage: c.LaxUsage,
		CheckRevocation: c.CheckRevocation, VerifyConnection: c.VerifyConnection,
		NextProtos: slices.Clone(c.NextProtos), CipherSuites: slices.Clone(c.CipherSuites),
		SessionCache: c.SessionCache, SessionLifetime: c.SessionLifetime, TicketKeys: slices.Clone(c.TicketKeys), OfferTickets: c.OfferTickets,
		NoExtensions: c.NoExtensions, ECDHEVector: c.ECDHEVector,
	}
}

func (c *Config) rand() io.Reader {
	if c.Rand != nil {
		return c.Rand
	}
	return rand.Reader
}

func (c *Config) now() time.Time {
	if c.Time != nil {
		return c.Time()
	}
	return time.Now()
}

func (c *Config) lifetime() time.Duration {
	if c.SessionLifetime > 0 {
		return c.SessionLifetime
	}
	return defaultSessionLifetime
}

// clientIssuers returns the distinguished names of ClientCAs.
func (c *Config) clientIssuers() [][]byte {
	c.issuersOnce.Do(func() {
		if c.ClientCAs != nil {
			//lint:ignore SA1019 the pool is not the system's, so Subjects is complete
			c.issuers = c.ClientCAs.Subjects()
		}
	})
	return c.issuers
}

func (c *Config) common() error {
	var faults []error
	if len(c.CipherSuites) > 0 && !slices.ContainsFunc(c.CipherSuites, func(id uint16) bool { return suiteByID(id) != nil }) {
		faults = append(faults, errors.New("none of CipherSuites is implemented (ECC and ECDHE with SM4-GCM or SM4-CBC are)"))
	}
	for _, p := range c.NextProtos {
		if len(p) == 0 || len(p) > 255 {
			faults = append(faults, fmt.Errorf("NextProtos: %q is empty or longer than 255 bytes", p))
		}
	}
	for i, p := range c.Certificates {
		if p == nil {
			faults = append(faults, fmt.Errorf("pair %d of Certificates is nil", i))
		}
	}
	return errors.Join(faults...)
}

func (c *Config) validateClient() error {
	faults := []error{c.common()}
	if c.RootCAs == nil && c.PinnedRoot == nil {
		faults = append(faults, errors.New("no RootCAs (name the authorities of the server)"))
	}
	if c.ServerName == "" && !c.SkipServerName {
		faults = append(faults, errors.New("no ServerName"))
	}
	if c.SkipServerName && c.VerifyConnection == nil {
		faults = append(faults, errors.New("no VerifyConnection beside SkipServerName: nothing would look who the server is"))
	}
	return errors.Join(faults...)
}

func (c *Config) validateServer() error {
	faults := []error{c.common()}
	if len(c.Certificates) == 0 && c.GetCertificate == nil {
		faults = append(faults, errors.New("no Certificates and no GetCertificate"))
	}
	if c.ClientAuth != NoClientCert && c.ClientCAs == nil {
		faults = append(faults, errors.New("no ClientCAs, though ClientAuth asks for certificates"))
	}
	if c.ClientAuth > RequireAndVerifyClientCert {
		faults = append(faults, fmt.Errorf("ClientAuth %d is unknown", c.ClientAuth))
	}
	for i, k := range c.TicketKeys {
		if len(k) != ticketKeySize {
			faults = append(faults, fmt.Errorf("TicketKeys: key %d has %d bytes, not %d", i, len(k), ticketKeySize))
		}
	}
	return errors.Join(faults...)
}

// ClientHelloInfo is what a client asked for.
type ClientHelloInfo struct {
	ServerName      string   // SNI, lower case as sent; empty when absent
	SupportedProtos []string // ALPN
	CipherSuites    []uint16
	Conn            net.Conn // the transport, for its addresses; do not read or write it
}

// ConnectionState is what the handshake of a connection agreed on.
type ConnectionState struct {
	HandshakeComplete  bool
	DidResume          bool
	Version            uint16 // always [Version] once complete
	CipherSuite        uint16
	ServerName         string // SNI that the client sent
	NegotiatedProtocol string // ALPN; empty when none was agreed

	// PeerSign is the certificate whose key the peer proved in the handshake:
	// who it is. Nil when a client presented none.
	PeerSign *smx509.Certificate

	// What follows is there for VerifyConnection only. An established
	// connection does not keep it: certificates would be most of its memory.

	// PeerCertificates are what the peer presented, in its order, PeerSign first.
	PeerCertificates []*smx509.Certificate
	// PeerEnc is the encryption certificate, which a client with an ECC suite
	// may lack.
	PeerEnc *smx509.Certificate
	// VerifiedChain leads from PeerSign to a root.
	VerifiedChain []*smx509.Certificate
}
