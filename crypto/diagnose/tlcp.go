package diagnose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// tlcpSuites in the order in which they are asked for. The ECC suites come
// first: they need no certificate of ours.
var tlcpSuites = []uint16{tlcp.ECC_SM4_GCM_SM3, tlcp.ECC_SM4_CBC_SM3, tlcp.ECDHE_SM4_GCM_SM3, tlcp.ECDHE_SM4_CBC_SM3}

// tlcp asks for every suite and examines what the first that is taken shows; it
// reports whether any was.
func (x *examination) tlcp() bool {
	r, f := &x.r.TLCP, &x.r.Findings
	var best *tlcp.ProbeResult
	var broken, bestBroken error
	taken := map[uint16]bool{}
	ask := func(suite uint16, bare bool) bool {
		p, err := x.probe(suite, bare)
		o := Offer{Name: fmt.Sprintf("%s %04X", tlcp.CipherSuiteName(suite), suite), Taken: p.Suite != 0}
		if err != nil {
			o.Detail = clean(err.Error())
			if p.Suite == 0 {
				x.tlcpWhy = err
			} else if broken == nil {
				broken = err
			}
		}
		r.Suites = append(r.Suites, o)
		if !o.Taken {
			return false
		}
		taken[suite] = true
		if best == nil {
			best, bestBroken = p, err
		}
		return true
	}
	for _, s := range tlcpSuites {
		if x.gone() {
			break
		}
		ask(s, false)
	}
	bare := false
	if best == nil && !x.gone() {
		// Some servers end the connection at any extension.
		if bare = ask(tlcpSuites[0], true) || ask(tlcpSuites[1], true); !bare {
			r.Suites = r.Suites[:len(tlcpSuites)]
		}
	}
	if best == nil {
		return false
	}
	r.ALPN, r.ClientCert = clean(best.ALPN), certNone
	if best.AsksClient {
		r.ClientCert = certAsked
	}
	switch {
	case bare:
		f.add("tlcp-extensions")
	case !taken[tlcp.ECC_SM4_GCM_SM3] && !taken[tlcp.ECC_SM4_CBC_SM3]:
		f.add("tlcp-no-ecc")
	case !taken[tlcp.ECC_SM4_GCM_SM3] && !taken[tlcp.ECDHE_SM4_GCM_SM3]:
		f.add("tlcp-no-gcm")
	}
	if broken != nil {
		f.add("tlcp-broken", broken)
	}
	pair := x.tlcpCertificates(best)
	x.tlcpSignature(best, pair)
	if bestBroken == nil && pair.Sign != nil && pair.Enc != nil {
		x.tlcpHandshake(best, pair, bare)
	}
	name := both{"TLCP", "TLCP"}
	if r.ALPN == "" && !bare {
		f.add("alpn-none", name)
	}
	x.clientCert(name, r.ClientCert)
	var works []string
	for _, s := range tlcpSuites {
		if taken[s] {
			works = append(works, tlcp.CipherSuiteName(s))
		}
	}
	if bestBroken == nil && !f.Has("tlcp-handshake") {
		f.add("tlcp-good", strings.Join(works, ", "))
	}
	return true
}

// probe asks for one suite.
func (x *examination) probe(suite uint16, bare bool) (*tlcp.ProbeResult, error) {
	raw, err := x.dial()
	if err != nil {
		return &tlcp.ProbeResult{SignedBy: -1, Covers: -1}, short(err)
	}
	defer raw.Close()
	p, err := tlcp.Probe(raw, tlcp.ProbeConfig{Suites: []uint16{suite}, ServerName: x.ServerName, NextProtos: offered, NoExtensions: bare})
	if err != nil {
		x.sawPlain(raw)
	}
	return p, short(err)
}

func (x *examination) tlcpCertificates(p *tlcp.ProbeResult) *Pair {
	f := &x.r.Findings
	var certs []*smx509.Certificate
	for i, der := range p.Certificates {
		c, err := smx509.ParseCertificate(bytes.Clone(der))
		if err != nil {
			f.add("cert-unparsable", fmt.Sprintf("TLCP #%d", i+1), err)
			continue
		}
		certs = append(certs, c)
	}
	pair := CheckPair(certs, PairOptions{Roots: x.TLCPRoots, Names: []string{x.ServerName}, Now: x.Now(), Ordered: true})
	x.r.TLCP.Certificates = pair.Infos()
	*f = append(*f, pair.Findings...)
	return pair
}

// tlcpSignature says with which key the server signed, when it is not the one
// that it should be.
func (x *examination) tlcpSignature(p *tlcp.ProbeResult, pair *Pair) {
	place := func(c *smx509.Certificate) int {
		for i, der := range p.Certificates {
			if c != nil && bytes.Equal(der, c.Raw) {
				return i
			}
		}
		return -2
	}
	ecc := p.Suite == tlcp.ECC_SM4_GCM_SM3 || p.Suite == tlcp.ECC_SM4_CBC_SM3
	switch {
	case len(p.Certificates) == 0 || pair.Sign == nil || pair.Findings.Has("same-key"):
	case p.SignedBy == place(pair.Enc):
		x.r.Findings.add("tlcp-signed-enc")
	case p.SignedBy != place(pair.Sign):
		x.r.Findings.add("tlcp-signed-none")
	case ecc && pair.Enc != nil && p.Covers != place(pair.Enc):
		x.r.Findings.add("tlcp-covers", p.Covers+1)
	}
}

// tlcpHandshake goes through whole handshakes, twice for resumption. The server
// is taken for what it showed, whatever its chain is worth; with roots a
// further one is as strict as a real client's.
func (x *examination) tlcpHandshake(p *tlcp.ProbeResult, pair *Pair, bare bool) {
	if p.Suite != tlcp.ECC_SM4_GCM_SM3 && p.Suite != tlcp.ECC_SM4_CBC_SM3 {
		return // the others need a certificate of ours
	}
	pool := smx509.NewCertPool()
	pool.AddCert(pair.Sign)
	pool.AddCert(pair.Enc)
	valid := within(within(x.Now(), pair.Sign.NotBefore, pair.Sign.NotAfter), pair.Enc.NotBefore, pair.Enc.NotAfter)
	cfg := &tlcp.Config{
		RootCAs: pool, ServerName: x.ServerName, SkipServerName: true, LaxUsage: true, NextProtos: offered, NoExtensions: bare,
		CipherSuites: []uint16{p.Suite}, Time: func() time.Time { return valid }, SessionCache: tlcp.NewLRUSessionCache(4), OfferTickets: !bare,
		VerifyConnection: func(tlcp.ConnectionState) error { return nil }, // to see whether it comes to an end, no more
	}
	_, err := x.shake(cfg)
	if err != nil && !bare {
		cfg = cfg.Clone() // some servers end the connection at the ticket extension
		cfg.OfferTickets = false
		_, err = x.shake(cfg)
	}
	var alert *tlcp.AlertError
	switch {
	case x.gone():
		return
	case err != nil && p.AsksClient && errors.As(err, &alert) && alert.Remote:
		x.r.TLCP.ClientCert = certDemanded
		return
	case err != nil:
		x.r.Findings.add("tlcp-handshake", err)
		return
	}
	name := both{"TLCP", "TLCP"}
	if resumed, err := x.shake(cfg); err == nil && resumed {
		x.r.TLCP.Resumption = true
		x.r.Findings.add("resumption", name)
	} else {
		x.r.Findings.add("no-resumption", name)
	}
	if len(x.TLCPRoots) > 0 && pair.Findings.Count(Fault) == 0 {
		roots := smx509.NewCertPool()
		for _, c := range x.TLCPRoots {
			roots.AddCert(c)
		}
		strict := &tlcp.Config{RootCAs: roots, ServerName: x.ServerName, NoExtensions: bare, CipherSuites: []uint16{p.Suite}, Time: x.Now}
		if _, err := x.shake(strict); err != nil {
			x.r.Findings.add("tlcp-handshake", err)
		} else {
			x.r.Findings.add("tlcp-trusted")
		}
	}
}

func (x *examination) shake(cfg *tlcp.Config) (resumed bool, err error) {
	raw, err := x.dial()
	if err != nil {
		return false, short(err)
	}
	defer raw.Close()
	ctx, cancel := context.WithTimeout(x.ctx, x.Step)
	defer cancel()
	c := tlcp.Client(raw, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		return false, short(err)
	}
	resumed = c.ConnectionState().DidResume
	c.Close()
	return resumed, nil
}
