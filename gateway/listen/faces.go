package listen

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// Faces answers, for each handshake, which certificate to show and whether to
// ask for the client's. It is replaced as a whole on reload, and must not
// change once a port has it.
type Faces struct {
	// Certificate returns the TLS certificate for a server name; name is "" when
	// the client sent none.
	Certificate func(name string) (*tls.Certificate, error)
	// Pair returns the TLCP certificates for a server name; an error refuses the
	// client. Nil: no TLCP.
	Pair func(name string) (*tlcp.Pair, error)
	// Own and OwnPair are the gateway's own certificates, which tunnels are shown
	// whatever server they name: agents look for the gateway's identity, and a
	// certificate of a web site has none. Nil: as for browsers.
	Own     *tls.Certificate
	OwnPair *tlcp.Pair
	// Demand reports whether an HTTP client must show a certificate for name. A
	// browser that need not show one is not asked, so it shows no chooser. name is
	// "" for a TLCP client that sent none, as GB/T 38636 has it; TLS clients that
	// send none are never asked.
	Demand func(name string) bool
	// ClientRoots are the authorities of devices over TLS. Nil: no client
	// certificate is accepted and the tunnel is closed.
	ClientRoots *x509.CertPool
	// ClientRootsTLCP are those of devices over TLCP.
	ClientRootsTLCP *smx509.CertPool

	// Revoked says why a certificate of a client's verified chain is refused, also
	// when a session is resumed. Nil: none is.
	Revoked func(cert, issuer *smx509.Certificate) error

	// SealTunnels refuses tunnels over TLS and QUIC that have no TLCP inside.
	SealTunnels bool

	NoTLS  bool // crypto.profile gm: TLS is refused; who lists suites of TLCP, as with PreferTLCP
	NoTLCP bool // crypto.profile intl: TLCP is refused
	// PreferTLCP ends the TLS handshake of a client that lists suites of TLCP in
	// its hello: browsers that do so come back with TLCP, which they never try
	// once TLS has succeeded.
	PreferTLCP bool

	once                 sync.Once
	open, device, tunnel face
}

// face is what one kind of client sees: HTTP without a certificate, HTTP with
// one, the tunnel. It has one Config of each protocol, so that a session of one
// face is of no use to another.
type face struct {
	tls  *tls.Config
	quic *tls.Config // TLS 1.3 inside QUIC
	tlcp *tlcpFace
}

// choose picks the face for what a hello offers and names.
func (f *Faces) choose(alpn []string, name string, tlcp bool) *face {
	switch {
	case slices.Contains(alpn, Tunnel), !tlcp && slices.Contains(alpn, TunnelSealed):
		return &f.tunnel
	case f.Demand != nil && (tlcp || name != "") && f.Demand(canonicalName(name)):
		return &f.device
	}
	return &f.open
}

// build makes the configurations. TLS sessions end with the old faces. TLCP
// sessions go on: the roots are others then, by which the stack verifies a
// session's certificates anew.
func (f *Faces) build(s *sessions) {
	f.once.Do(func() {
		f.buildTLS()
		f.buildTLCP(s)
	})
}

func (f *Faces) buildTLS() {
	roots := f.ClientRoots
	if roots == nil {
		roots = x509.NewCertPool() // nobody is accepted, instead of everybody that the system trusts
	}
	base := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return f.Certificate(canonicalName(h.ServerName))
		},
		// TLS 1.2 keeps only forward-secret AEAD suites.
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		NextProtos: []string{HTTP2, HTTP1},
		ClientCAs:  roots,
	}
	f.open.tls = base
	f.device.tls = base.Clone()
	f.device.tls.ClientAuth = tls.RequireAndVerifyClientCert
	f.device.tls.VerifyConnection = f.verifyTLS
	f.tunnel.tls = f.device.tls.Clone()
	switch {
	case f.SealTunnels:
		f.tunnel.tls.NextProtos = []string{TunnelSealed}
	case f.Pair != nil && !f.NoTLCP:
		f.tunnel.tls.NextProtos = []string{Tunnel, TunnelSealed}
	default:
		f.tunnel.tls.NextProtos = []string{Tunnel}
	}
	if f.Own != nil {
		f.tunnel.tls.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.Own, nil }
	}
	f.tunnel.tls.DynamicRecordSizingDisabled = true               // tunnels carry their own records
	for _, face := range []*face{&f.open, &f.device, &f.tunnel} { // clones have ticket keys of their own
		face.quic = face.tls.Clone()
		face.quic.MinVersion = tls.VersionTLS13
		face.quic.NextProtos = []string{HTTP3}
		ageTickets(face.tls)
		ageTickets(face.quic)
	}
	f.tunnel.quic.NextProtos = f.tunnel.tls.NextProtos
}

// verifyTLS looks for a chain of the client of which nothing is revoked.
func (f *Faces) verifyTLS(s tls.ConnectionState) error {
	if f.Revoked == nil {
		return nil
	}
	err := errors.New("no verified chain")
	for _, chain := range s.VerifiedChains {
		if err = f.verifyChain(chain); err == nil {
			return nil
		}
	}
	return err
}

func (f *Faces) verifyChain(chain []*x509.Certificate) error {
	certs := make([]*smx509.Certificate, len(chain))
	for i, c := range chain {
		var err error
		if certs[i], err = smx509.ParseCertificate(c.Raw); err != nil {
			return err
		}
	}
	for i := range len(certs) - 1 {
		if err := f.Revoked(certs[i], certs[i+1]); err != nil {
			return err
		}
	}
	return nil
}

func (f *Faces) buildTLCP(s *sessions) {
	if f.Pair == nil {
		return
	}
	roots := f.ClientRootsTLCP
	if roots == nil {
		roots = smx509.NewCertPool()
	}
	pair := func(h *tlcp.ClientHelloInfo) (*tlcp.Pair, error) {
		p, err := f.Pair(canonicalName(h.ServerName))
		if err != nil {
			return nil, &tlcp.AlertError{Alert: tlcp.AlertUnrecognizedName, Err: err}
		}
		return p, nil
	}
	f.open.tlcp = newTLCPFace(s.open, &tlcp.Config{GetCertificate: pair, NextProtos: []string{HTTP2, HTTP1}})
	f.device.tlcp = newTLCPFace(s.device, &tlcp.Config{
		GetCertificate: pair, NextProtos: []string{HTTP2, HTTP1},
		ClientCAs: roots, ClientAuth: tlcp.RequireAndVerifyClientCert, VerifyConnection: oneParty, CheckRevocation: f.Revoked,
	})
	if f.OwnPair != nil {
		pair = func(*tlcp.ClientHelloInfo) (*tlcp.Pair, error) { return f.OwnPair, nil }
	}
	f.tunnel.tlcp = newTLCPFace(s.tunnel, &tlcp.Config{
		GetCertificate: pair, NextProtos: []string{Tunnel},
		ClientCAs: roots, ClientAuth: tlcp.RequireAndVerifyClientCert, VerifyConnection: oneParty, CheckRevocation: f.Revoked,
		CipherSuites: []uint16{tlcp.ECDHE_SM4_GCM_SM3, tlcp.ECDHE_SM4_CBC_SM3}, // forward secrecy: the clients are our own
	})
}

// oneParty refuses two client certificates of two parties.
func oneParty(s tlcp.ConnectionState) error {
	_, err := certid.OfPair(s.PeerSign, s.PeerEnc)
	if errors.Is(err, certid.ErrNone) { // another check asks for an identity where one is needed
		return nil
	}
	return err
}

// sessions are the TLCP sessions of a port by face. They outlive its Faces.
type sessions struct{ open, device, tunnel *faceSessions }

type faceSessions struct {
	cache tlcp.SessionCache

	mu   sync.Mutex
	keys [][]byte  // of tickets, newest first; guarded by mu
	made time.Time // of the newest; guarded by mu
}

// How many sessions are kept. One of a browser was seen to take 400 bytes, one
// of a device 6.5 KiB with its certificates.
const (
	openSessions   = 16384
	deviceSessions = 2048
)

// ticketLife is how long a key seals tickets. It opens them as long again.
const ticketLife = 12 * time.Hour

func newSessions() *sessions {
	of := func(n int) *faceSessions { return &faceSessions{cache: tlcp.NewLRUSessionCache(n)} }
	return &sessions{of(openSessions), of(deviceSessions), of(deviceSessions)}
}

// ticketKeys returns the keys for now, and until when they are.
func (s *faceSessions) ticketKeys(now time.Time) ([][]byte, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.keys) == 0 || now.Sub(s.made) >= ticketLife {
		key := make([]byte, 16)
		_, _ = rand.Read(key) // never fails: the program ends instead
		s.keys, s.made = append([][]byte{key}, s.keys[:min(1, len(s.keys))]...), now
	}
	return s.keys, s.made.Add(ticketLife)
}

// tlcpFace is one face's Config, made anew when its ticket key grows old.
type tlcpFace struct {
	sessions *faceSessions
	current  atomic.Pointer[dated]
}

type dated struct {
	config *tlcp.Config
	until  time.Time
}

func newTLCPFace(s *faceSessions, c *tlcp.Config) *tlcpFace {
	f := &tlcpFace{sessions: s}
	c.SessionCache = s.cache
	d := &dated{config: c}
	c.TicketKeys, d.until = s.ticketKeys(time.Now())
	f.current.Store(d)
	return f
}

// config returns the Config for a handshake that begins now.
func (f *tlcpFace) config(now time.Time) *tlcp.Config {
	d := f.current.Load()
	if now.Before(d.until) {
		return d.config
	}
	next := &dated{config: d.config.Clone()}
	next.config.TicketKeys, next.until = f.sessions.ticketKeys(now)
	f.current.Store(next) // whoever else does so has made the same
	return next.config
}

// canonicalName is a server name as certificates and routes spell it.
func canonicalName(s string) string { return strings.TrimSuffix(strings.ToLower(s), ".") }
