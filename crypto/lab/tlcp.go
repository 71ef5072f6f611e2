package lab

import (
	"fmt"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// Names of a party's TLCP keys in its folder.
const (
	TLCPSign = "tlcp-sign" // SM2: proves who it is in a TLCP handshake
	TLCPEnc  = "tlcp-enc"  // SM2: TLCP keys are encrypted to it, or agreed with it
)

// The certificates of TLCP stand under the message root, and carry the extended
// usages of a channel, which those of messages do not have.
var (
	tlcpExt         = []smx509.ExtKeyUsage{smx509.ExtKeyUsageServerAuth, smx509.ExtKeyUsageClientAuth}
	tlcpSignProfile = profile{root: keystore.MessageRoot, sm2: true, usage: smx509.KeyUsageDigitalSignature, ext: tlcpExt}
	tlcpEncProfile  = profile{
		root: keystore.MessageRoot, sm2: true, ext: tlcpExt,
		usage: smx509.KeyUsageKeyEncipherment | smx509.KeyUsageDataEncipherment | smx509.KeyUsageKeyAgreement,
	}
)

// IssueTLCPSign answers an SM2 request (DER) with a signing certificate for
// TLCP, server and client.
func (c *CA) IssueTLCPSign(csr []byte, id certid.Identity, o Options) ([]byte, error) {
	id.ListSigner = ""
	return c.issue(csr, id, o, tlcpSignProfile)
}

// IssueTLCPEnc answers an SM2 request (DER) with an encryption certificate for
// TLCP, server and client. Unlike authorities that serve the public, the lab
// makes no encryption keys and holds none in escrow.
func (c *CA) IssueTLCPEnc(csr []byte, id certid.Identity, o Options) ([]byte, error) {
	id.ListSigner = ""
	return c.issue(csr, id, o, tlcpEncProfile)
}

// TLCPParty adds the keys tlcp-sign and tlcp-enc and their certificates to the
// folder of a party. A folder that has one of the keys already is refused.
func (c *CA) TLCPParty(s *keystore.Store, id certid.Identity, hosts []string) (*tlcp.Pair, error) {
	for _, k := range []struct {
		name  string
		issue func([]byte, certid.Identity, Options) ([]byte, error)
	}{{TLCPSign, c.IssueTLCPSign}, {TLCPEnc, c.IssueTLCPEnc}} {
		if err := s.Generate(k.name, keystore.SM2); err != nil {
			return nil, fmt.Errorf("make TLCP keys of %q: %w", id.Name(), err)
		}
		csr, err := s.CSR(k.name, id, hosts)
		if err != nil {
			return nil, fmt.Errorf("make TLCP keys of %q: %w", id.Name(), err)
		}
		chain, err := k.issue(csr, id, Options{Hosts: hosts})
		if err == nil {
			err = s.PutChain(k.name, chain)
		}
		if err != nil {
			return nil, fmt.Errorf("make TLCP keys of %q: %w", id.Name(), err)
		}
	}
	return LoadTLCP(s)
}

// LoadTLCP returns the pair that stands in the folder of a party.
func LoadTLCP(s *keystore.Store) (*tlcp.Pair, error) {
	var certs [2]tlcp.Certificate
	for i, name := range []string{TLCPSign, TLCPEnc} {
		chain, err := s.Chain(name)
		if err != nil {
			return nil, err
		}
		key, err := s.Signer(name)
		if err != nil {
			return nil, err
		}
		certs[i] = tlcp.Certificate{Chain: chain, Key: key}
	}
	return tlcp.NewPair(certs[0], certs[1])
}
