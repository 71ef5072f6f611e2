package tlcp

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/emmansun/gmsm/smx509"
)

// ErrRevoked is why [CRLs.Check] refuses a certificate that stands on a list.
var ErrRevoked = errors.New("the certificate is revoked")

// CRLs holds the revocation lists of any number of authorities in memory. Its
// method Check serves as Config.CheckRevocation. The zero value holds no list
// and refuses nothing; it may be used by several goroutines at once.
type CRLs struct {
	// Required refuses a certificate whose authority has no list here, or only
	// one whose next update is overdue. Otherwise an overdue list still
	// revokes what stands on it.
	Required bool
	// Now is the clock. Default time.Now.
	Now func() time.Time

	mu    sync.RWMutex
	lists map[string]*revocationList // by authority, guarded by mu; values do not change
}

type revocationList struct {
	from, until time.Time
	serials     map[string]struct{}
}

// authorityKey names an authority by its subject and key.
func authorityKey(c *smx509.Certificate) string {
	return string(c.RawSubject) + "\x00" + string(c.RawSubjectPublicKeyInfo)
}

// Add takes the list der, which issuer must have signed, in the place of the
// one before. A list that is older than that is refused.
func (l *CRLs) Add(der []byte, issuer *smx509.Certificate) error {
	crl, err := smx509.ParseRevocationList(der)
	if err != nil {
		return fmt.Errorf("add revocation list: %w", err)
	}
	if err := crl.CheckSignatureFrom(issuer); err != nil {
		return fmt.Errorf("add revocation list: %w", err)
	}
	if string(crl.RawIssuer) != string(issuer.RawSubject) {
		return errors.New("add revocation list: it names another authority")
	}
	list := &revocationList{from: crl.ThisUpdate, until: crl.NextUpdate, serials: make(map[string]struct{}, len(crl.RevokedCertificateEntries))}
	for _, e := range crl.RevokedCertificateEntries {
		const removeFromCRL = 8 // RFC 5280 §5.3.1
		if e.ReasonCode != removeFromCRL {
			list.serials[e.SerialNumber.String()] = struct{}{}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	key := authorityKey(issuer)
	if old := l.lists[key]; old != nil && list.from.Before(old.from) {
		return fmt.Errorf("add revocation list: it is of %s, and one of %s is held", list.from.UTC().Format(time.RFC3339), old.from.UTC().Format(time.RFC3339))
	}
	if l.lists == nil {
		l.lists = make(map[string]*revocationList)
	}
	l.lists[key] = list
	return nil
}

// Check returns an error for a certificate that its issuer has revoked, and
// with Required for one of which this is not known.
func (l *CRLs) Check(cert, issuer *smx509.Certificate) error {
	l.mu.RLock()
	list := l.lists[authorityKey(issuer)]
	l.mu.RUnlock()
	if list == nil {
		if l.Required {
			return fmt.Errorf("check revocation: no list of %q is held", issuer.Subject)
		}
		return nil
	}
	if _, revoked := list.serials[cert.SerialNumber.String()]; revoked {
		return fmt.Errorf("check revocation of %q: %w", cert.Subject, ErrRevoked)
	}
	now := time.Now
	if l.Now != nil {
		now = l.Now
	}
	if l.Required && !list.until.IsZero() && now().After(list.until) {
		return fmt.Errorf("check revocation: the list of %q was to be renewed by %s", issuer.Subject, list.until.UTC().Format(time.RFC3339))
	}
	return nil
}
