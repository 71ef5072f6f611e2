package lab

import (
	"fmt"
	"math/big"
	"time"

	"github.com/emmansun/gmsm/smx509"
)

// RevocationList returns the revocation list (RFC 5280 §5) of the root called
// name, as DER: the serial numbers of what it has revoked. It is in force for a
// day.
func (c *CA) RevocationList(name string, revoked ...*big.Int) ([]byte, error) {
	r, ok := c.roots[name]
	if !ok {
		return nil, fmt.Errorf("make revocation list: no root %q", name)
	}
	now := c.cfg.Now()
	l := &smx509.RevocationList{Number: big.NewInt(now.UnixNano()), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(24 * time.Hour)}
	for _, serial := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, smx509.RevocationListEntry{SerialNumber: serial, RevocationTime: now})
	}
	der, err := smx509.CreateRevocationList(c.cfg.Rand, l, r.cert, r.key)
	if err != nil {
		return nil, fmt.Errorf("make revocation list: %w", err)
	}
	return der, nil
}
