package control

import (
	"crypto/tls"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// How long the control center's own certificates live. Those for messages are
// pinned at the parties; the list signer's is short, and renewed by itself
// like the one for TLS.
const (
	ownLife  = 10 * 365 * 24 * time.Hour
	tlsLife  = 397 * 24 * time.Hour
	listLife = 30 * 24 * time.Hour
)

// renewable is what changes when the own certificates are renewed.
type renewable struct {
	tls       tls.Certificate
	pair      *tlcp.Pair
	rooted    *tlcp.Pair       // pair that is sent with the root
	list      *envelope.Sender // signs lists and deltas
	signerExt jsontext.Value   // its chain, for the header
}

func (s *Server) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return &s.own.Load().tls, nil
}

// renewOwn issues new certificates for the keys tls and list when less than a
// third of their life is left, and takes what is in the folder into use. The
// keys stay; others have pinned the authority.
func (s *Server) renewOwn() error {
	now := s.cfg.Now()
	for _, name := range []string{keystore.TLS, keystore.TLCPSign, keystore.TLCPEnc, keystore.List} {
		chain, err := s.keys.Chain(name)
		if err != nil {
			return err
		}
		life := chain[0].NotAfter.Sub(chain[0].NotBefore)
		if chain[0].NotAfter.Sub(now) > life/3 {
			continue
		}
		if err := reissue(s.ca, s.keys, name, life.Round(time.Hour)); err != nil {
			return err
		}
		s.log.Info("certificate renewed", zap.String("name", name), zap.Time("was_until", chain[0].NotAfter))
	}
	var next renewable
	var err error
	if next.tls, err = s.keys.TLSCertificate(keystore.TLS); err != nil {
		return err
	}
	if next.pair, err = s.keys.TLCPPair(); err != nil {
		return err
	}
	next.rooted = next.pair.WithRoot(s.tlcpRoot)
	// Who enrols knows the root by its fingerprint alone, so the chain has it.
	next.tls.Certificate = append(slices.Clip(next.tls.Certificate), s.tlsRoot.Raw)
	sender, chain, err := s.signer(keystore.List)
	if err != nil {
		return err
	}
	next.list, next.signerExt = sender, envelope.SignerExt(chain)
	s.own.Store(&next)
	return nil
}

// reissue gives the key name of a folder a new certificate with the identity
// and names of its old one.
func reissue(ca *lab.CA, keys *keystore.Store, name string, life time.Duration) error {
	fail := func(err error) error { return fmt.Errorf("renew certificate %s: %w", name, err) }
	chain, err := keys.Chain(name)
	if err != nil {
		return fail(err)
	}
	id, err := certid.OfSM(chain[0])
	if err != nil {
		return fail(err)
	}
	o := lab.Options{Hosts: append([]string{}, chain[0].DNSNames...), TTL: life}
	for _, ip := range chain[0].IPAddresses {
		o.Hosts = append(o.Hosts, ip.String())
	}
	csr, err := keys.CSR(name, id, nil)
	if err != nil {
		return fail(err)
	}
	issue := map[string]func([]byte, certid.Identity, lab.Options) ([]byte, error){
		keystore.TLS: ca.IssueTLS, keystore.TLCPSign: ca.IssueTLCPSign, keystore.TLCPEnc: ca.IssueTLCPEnc, keystore.List: ca.IssueList,
	}[name]
	pem, err := issue(csr, id, o)
	if err == nil {
		err = keys.PutChain(name, pem)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}
