package diagnose

import (
	"bytes"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/emmansun/gmsm/smx509"
)

const (
	usageSign = smx509.KeyUsageDigitalSignature | smx509.KeyUsageContentCommitment
	usageEnc  = smx509.KeyUsageKeyEncipherment | smx509.KeyUsageDataEncipherment | smx509.KeyUsageKeyAgreement
)

// soon is how long before its end a certificate is warned of.
const soon = 30 * 24 * time.Hour

// PairOptions say what [CheckPair] expects.
type PairOptions struct {
	Roots   []*smx509.Certificate // empty: chains are not checked
	Names   []string              // each must stand in both certificates
	Now     time.Time             // zero: now
	Client  bool                  // the certificates of a client, not of a server
	Ordered bool                  // as a server sent them: the signing certificate must stand first
}

// Pair is the two certificates of a TLCP party and what was found.
type Pair struct {
	Sign, Enc *smx509.Certificate // nil: there is none
	Others    []*smx509.Certificate
	Findings  Findings
}

// Infos returns the certificates for people, the pair first.
func (p *Pair) Infos() []CertInfo {
	var out []CertInfo
	if p.Sign != nil {
		out = append(out, describe(p.Sign, "sign"))
	}
	if p.Enc != nil {
		out = append(out, describe(p.Enc, "enc"))
	}
	for _, c := range p.Others {
		role := "other"
		if c.IsCA {
			role = "authority"
		}
		out = append(out, describe(c, role))
	}
	return out
}

// CheckPair finds the two certificates of a TLCP party among certs, by their
// key usage and, where that does not tell, by their place, and says what is
// wrong with each.
func CheckPair(certs []*smx509.Certificate, o PairOptions) *Pair {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	p := &Pair{}
	p.choose(certs, o)
	if p.Sign != nil {
		p.checkUsage(p.Sign, signRole, usageSign, usageEnc, "sign-usage", "sign-extra")
		p.checkOne(p.Sign, signRole, o)
	}
	if p.Enc != nil {
		p.checkUsage(p.Enc, encRole, usageEnc, usageSign, "enc-usage", "enc-extra")
		p.checkOne(p.Enc, encRole, o)
	}
	if p.Sign != nil && p.Enc != nil {
		p.checkTogether(o)
	}
	if len(o.Roots) == 0 && (p.Sign != nil || p.Enc != nil) {
		p.Findings.add("chain-unchecked")
	}
	if p.Sign != nil && p.Enc != nil && p.Findings.Count(Fault) == 0 {
		p.Findings.add("pair-good", subject(p.Sign), subject(p.Enc))
	}
	return p
}

// choose sorts the certificates into the pair and others.
func (p *Pair) choose(certs []*smx509.Certificate, o PairOptions) {
	var leaves []*smx509.Certificate
	twice := false
	for _, c := range certs {
		switch {
		case slices.ContainsFunc(leaves, func(l *smx509.Certificate) bool { return bytes.Equal(l.Raw, c.Raw) }):
			twice = true
		case authority(c, certs):
			p.Others = append(p.Others, c)
		default:
			leaves = append(leaves, c)
		}
	}
	is := func(c *smx509.Certificate, u, not smx509.KeyUsage) bool {
		return c.KeyUsage&u != 0 && c.KeyUsage&not == 0
	}
	first := func(u, not smx509.KeyUsage, but *smx509.Certificate) *smx509.Certificate {
		for _, c := range leaves {
			if c != but && is(c, u, not) {
				return c
			}
		}
		return nil
	}
	other := func(c *smx509.Certificate) *smx509.Certificate {
		for _, l := range leaves {
			if l != c {
				return l
			}
		}
		return nil
	}
	switch len(leaves) {
	case 0:
		p.Findings.add("no-leaf")
		return
	case 1:
		have, missing := signRole, encRole
		if is(leaves[0], usageEnc, usageSign) {
			have, missing = encRole, signRole
			p.Enc = leaves[0]
		} else {
			p.Sign = leaves[0]
		}
		if twice {
			p.Findings.add("same-cert", missing)
		} else {
			p.Findings.add("one-leaf", have, missing)
		}
		return
	}
	p.Sign = first(usageSign, usageEnc, nil)
	p.Enc = first(usageEnc, usageSign, nil)
	if p.Sign == nil {
		p.Sign = first(usageSign, 0, p.Enc)
	}
	if p.Enc == nil {
		p.Enc = first(usageEnc, 0, p.Sign)
	}
	switch {
	case p.Sign == nil && p.Enc == nil:
		p.Sign, p.Enc = leaves[0], leaves[1]
	case p.Sign == nil:
		p.Sign = other(p.Enc)
	case p.Enc == nil:
		p.Enc = other(p.Sign)
	}
	if len(leaves) > 2 {
		p.Findings.add("many-leaves", len(leaves))
		for _, l := range leaves {
			if l != p.Sign && l != p.Enc {
				p.Others = append(p.Others, l)
			}
		}
	}
	if o.Ordered && slices.Index(certs, p.Enc) < slices.Index(certs, p.Sign) {
		p.Findings.add("order")
	}
	if o.Ordered && slices.ContainsFunc(p.Others, selfIssued) {
		p.Findings.add("root-sent")
	}
}

func selfIssued(c *smx509.Certificate) bool { return bytes.Equal(c.RawSubject, c.RawIssuer) }

// authority reports whether c is there to vouch for others. One that is marked
// as an authority and issued none of them, among fewer than two that are not,
// is taken for a leaf with a wrong mark.
func authority(c *smx509.Certificate, certs []*smx509.Certificate) bool {
	if !c.IsCA {
		return false
	}
	plain := 0
	for _, x := range certs {
		if x != c && bytes.Equal(x.RawIssuer, c.RawSubject) {
			return true
		}
		if !x.IsCA {
			plain++
		}
	}
	return plain >= 2 || selfIssued(c) || c.KeyUsage&smx509.KeyUsageCertSign != 0
}

func (p *Pair) checkUsage(c *smx509.Certificate, role both, want, not smx509.KeyUsage, missing, extra string) {
	switch {
	case c.KeyUsage&want == 0:
		p.Findings.add(missing, list(usages(c.KeyUsage)))
	case c.KeyUsage&not != 0:
		p.Findings.add(extra, list(usages(c.KeyUsage)))
	}
	if c.IsCA {
		p.Findings.add("is-ca", role)
	}
}

// checkOne looks at what must be true of either certificate.
func (p *Pair) checkOne(c *smx509.Certificate, role both, o PairOptions) {
	f := &p.Findings
	if key := keyName(c.PublicKey); key != "SM2" {
		f.add("curve", role, key)
	}
	if s := signatureName(c); s != "SM2-SM3" {
		f.add("signature-algorithm", role, s)
	}
	f.checkDates(c.NotBefore, c.NotAfter, role, o.Now)
	for_, use := both{"server", "服务器"}, smx509.ExtKeyUsageServerAuth
	if o.Client {
		for_, use = both{"client", "客户端"}, smx509.ExtKeyUsageClientAuth
	}
	if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 && !slices.Contains(c.ExtKeyUsage, use) && !slices.Contains(c.ExtKeyUsage, smx509.ExtKeyUsageAny) {
		f.add("extended-usage", role, for_, list(extended(c)))
	}
	if !o.Client && len(o.Names) == 0 && len(c.DNSNames)+len(c.IPAddresses) == 0 {
		f.add("no-names", role)
	}
	for _, n := range o.Names {
		if c.VerifyHostname(n) != nil {
			f.add("name-missing", role, n, list(names(c)))
		}
	}
	if len(o.Roots) > 0 {
		p.checkChain(c, role, o)
	}
}

// checkDates is for certificates of both protocols.
func (f *Findings) checkDates(from, to time.Time, role both, now time.Time) {
	const day = "2006-01-02 15:04 UTC"
	switch {
	case now.After(to):
		f.add("expired", role, to.UTC().Format(day))
	case now.Before(from):
		f.add("not-yet", role, from.UTC().Format(day))
	case now.Add(soon).After(to):
		f.add("ends-soon", role, to.UTC().Format(day))
	}
}

func (p *Pair) checkChain(c *smx509.Certificate, role both, o PairOptions) {
	opts := smx509.VerifyOptions{
		Roots: smx509.NewCertPool(), Intermediates: smx509.NewCertPool(), CurrentTime: within(o.Now, c.NotBefore, c.NotAfter),
		KeyUsages: []smx509.ExtKeyUsage{smx509.ExtKeyUsageAny},
	}
	issuer := false
	for _, r := range o.Roots {
		opts.Roots.AddCert(r)
		issuer = issuer || bytes.Equal(r.RawSubject, c.RawIssuer)
	}
	for _, x := range p.Others {
		if affordable(x) {
			opts.Intermediates.AddCert(x)
			issuer = issuer || bytes.Equal(x.RawSubject, c.RawIssuer)
		}
	}
	var invalid smx509.CertificateInvalidError
	switch _, err := c.Verify(opts); {
	case err == nil:
	case opts.CurrentTime != o.Now && errors.As(err, &invalid) && invalid.Reason == smx509.Expired:
		// No time is in the lives of all of the chain; its own end is reported.
	case !issuer:
		p.Findings.add("issuer-missing", role, c.Issuer.String())
	default:
		p.Findings.add("chain-broken", role, reasonOf(err))
	}
}

// reasonOf says more about an unknown authority than the error's text.
func reasonOf(err error) error {
	var unknown smx509.UnknownAuthorityError
	if errors.As(err, &unknown) && unknown.Cert != nil {
		return fmt.Errorf("%s: no certificate of its issuer %s verifies its signature", unknown.Cert.Subject, unknown.Cert.Issuer)
	}
	return err
}

// within returns the time nearest to now at which a certificate is valid, so
// that its own dates, which are reported apart, do not hide a broken chain.
func within(now, from, to time.Time) time.Time {
	switch {
	case now.Before(from):
		return from
	case now.After(to):
		return to
	}
	return now
}

// affordable reports whether signatures of the key may be verified for a
// stranger.
func affordable(c *smx509.Certificate) bool {
	k, ok := c.PublicKey.(*rsa.PublicKey)
	return !ok || k.N.BitLen() <= 8192
}

func (p *Pair) checkTogether(o PairOptions) {
	s, e, f := p.Sign, p.Enc, &p.Findings
	if bytes.Equal(s.RawSubjectPublicKeyInfo, e.RawSubjectPublicKeyInfo) {
		f.add("same-key")
	}
	if !bytes.Equal(s.RawSubject, e.RawSubject) {
		f.add("subjects-differ", subject(s), subject(e))
	}
	if !bytes.Equal(s.RawIssuer, e.RawIssuer) {
		f.add("issuers-differ", s.Issuer.String(), e.Issuer.String())
	}
	if a, b := names(s), names(e); len(o.Names) == 0 && !slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))) {
		f.add("names-differ", list(a), list(b))
	}
}
