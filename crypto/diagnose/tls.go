package diagnose

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/emmansun/gmsm/smx509"
)

var tlsVersions = []uint16{tls.VersionTLS13, tls.VersionTLS12, tls.VersionTLS11, tls.VersionTLS10}

// offered are the protocols that are asked for by ALPN.
var offered = []string{"h2", "http/1.1"}

// tls asks for every version and examines the best; it reports whether any was
// taken.
func (x *examination) tls() bool {
	r := &x.r.TLS
	var best *tlsAnswer
	for _, v := range tlsVersions {
		if x.gone() {
			break
		}
		a := x.tlsOnce(v, nil)
		o := Offer{Name: tls.VersionName(v), Taken: a.spoke()}
		if o.Taken {
			o.Detail = clean(a.detail())
			if best == nil {
				best = a
			}
			if v < tls.VersionTLS12 {
				x.r.Findings.add("tls-old", o.Name)
			}
		} else {
			o.Detail = clean(a.err.Error())
			x.tlsWhy = a.err
		}
		r.Versions = append(r.Versions, o)
	}
	if best == nil {
		return false
	}
	if best.version != tls.VersionTLS13 {
		x.r.Findings.add("tls-no13")
	}
	r.ALPN = clean(best.state.NegotiatedProtocol)
	r.ClientCert = best.clientCert()
	x.tlsCertificates(best)
	x.tlsResumption(best)
	name := both{"TLS", "TLS"}
	if best.err == nil && r.ALPN == "" {
		x.r.Findings.add("alpn-none", name)
	}
	x.clientCert(name, r.ClientCert)
	if best.err == nil && !x.r.Findings.Has("tls-chain") {
		x.r.Findings.add("tls-good", best.detail())
	}
	return true
}

func (x *examination) clientCert(name both, want string) {
	switch want {
	case certAsked:
		x.r.Findings.add("client-asked", name)
	case certDemanded:
		x.r.Findings.add("client-needed", name)
	}
}

// tlsAnswer is what became of one connection.
type tlsAnswer struct {
	version uint16
	state   tls.ConnectionState
	asked   bool // for a client certificate
	certs   [][]byte
	err     error // of the handshake, or of what followed it
}

// spoke reports whether the server took the version: it may refuse us for want
// of a certificate after that.
func (a *tlsAnswer) spoke() bool { return a.err == nil || len(a.certs) > 0 }

func (a *tlsAnswer) detail() string {
	if a.state.CipherSuite == 0 {
		return tls.VersionName(a.version)
	}
	s := tls.CipherSuiteName(a.state.CipherSuite)
	if a.state.CurveID != 0 {
		s += ", " + a.state.CurveID.String()
	}
	return s
}

func (a *tlsAnswer) clientCert() string {
	switch {
	case a.asked && a.err != nil:
		return certDemanded
	case a.asked:
		return certAsked
	}
	return certNone
}

// tlsOnce shakes hands in one version. Certificates are not verified here:
// tlsCertificates judges them, and nothing is sent.
func (x *examination) tlsOnce(version uint16, cache tls.ClientSessionCache) *tlsAnswer {
	a := &tlsAnswer{version: version}
	raw, err := x.dial()
	if err != nil {
		a.err = short(err)
		return a
	}
	defer raw.Close()
	cfg := &tls.Config{
		ServerName: x.ServerName, MinVersion: version, MaxVersion: version, NextProtos: offered, ClientSessionCache: cache, Time: x.Now,
		InsecureSkipVerify: true, // see above
		CipherSuites:       everySuite(),
		VerifyPeerCertificate: func(certs [][]byte, _ [][]*x509.Certificate) error {
			a.certs = certs
			return nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			a.asked = true
			return &tls.Certificate{}, nil // none
		},
	}
	c := tls.Client(raw, cfg)
	if err := c.HandshakeContext(x.ctx); err != nil {
		x.sawPlain(raw)
		a.err = short(plainly(err))
		return a
	}
	a.state = c.ConnectionState()
	if version == tls.VersionTLS13 || cache != nil {
		// A refusal of our missing certificate, and tickets, come behind the
		// handshake.
		_ = c.SetReadDeadline(time.Now().Add(lastWord)) // of a live connection; else Read says so
		var alert tls.AlertError
		if _, err := c.Read(make([]byte, 1)); errors.As(err, &alert) || err != nil && strings.Contains(err.Error(), "remote error") {
			a.err = err
		}
	}
	return a
}

func everySuite() []uint16 {
	var out []uint16
	for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		out = append(out, s.ID)
	}
	return out
}

func plainly(err error) error {
	var rec tls.RecordHeaderError
	if errors.As(err, &rec) {
		return fmt.Errorf("the answer is no TLS (it begins with %q)", rec.RecordHeader[:])
	}
	return err
}

func (x *examination) tlsCertificates(a *tlsAnswer) {
	f := &x.r.Findings
	var certs []*x509.Certificate
	for i, der := range a.certs[:min(len(a.certs), maxCerts)] {
		if c, err := smx509.ParseCertificate(der); err == nil {
			role := "tls"
			if i > 0 {
				role = "other"
				if c.IsCA {
					role = "authority"
				}
			}
			x.r.TLS.Certificates = append(x.r.TLS.Certificates, describe(c, role))
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			f.add("tls-chain", err)
			return
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return
	}
	leaf, now := certs[0], x.Now()
	f.checkDates(leaf.NotBefore, leaf.NotAfter, tlsRole, now)
	if leaf.VerifyHostname(x.ServerName) != nil {
		var have []string
		for _, n := range leaf.DNSNames[:min(len(leaf.DNSNames), mostNames)] {
			have = append(have, clean(n))
		}
		for _, ip := range leaf.IPAddresses[:min(len(leaf.IPAddresses), mostNames)] {
			have = append(have, ip.String())
		}
		f.add("name-missing", tlsRole, x.ServerName, list(have))
	}
	opts := x509.VerifyOptions{Roots: x.Roots, Intermediates: x509.NewCertPool(), CurrentTime: within(now, leaf.NotBefore, leaf.NotAfter)}
	for _, c := range certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(opts); err != nil {
		f.add("tls-chain", err)
	}
	if x.Roots == nil {
		f.add("tls-system")
	}
}

// tlsResumption connects twice more with a cache.
func (x *examination) tlsResumption(a *tlsAnswer) {
	if a.err != nil {
		return // we would be refused again
	}
	cache := tls.NewLRUClientSessionCache(4)
	for range 2 {
		if x.gone() {
			return
		}
		again := x.tlsOnce(a.version, cache)
		if again.err == nil && again.state.DidResume {
			x.r.TLS.Resumption = true
			x.r.Findings.add("resumption", both{"TLS", "TLS"})
			return
		}
	}
	x.r.Findings.add("no-resumption", both{"TLS", "TLS"})
}
