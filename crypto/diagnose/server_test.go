package diagnose

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/hello"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// serve runs f on each connection until the test ends and returns the address.
func serve(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // of a live connection
				f(c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

func examine(t *testing.T, addr string, edit ...func(*ServerOptions)) (*ServerReport, string) {
	t.Helper()
	o := ServerOptions{Address: addr, ServerName: host, Timeout: 20 * time.Second, Step: 5 * time.Second}
	for _, f := range edit {
		f(&o)
	}
	r := Server(t.Context(), o)
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	return r, b.String()
}

func tlsServer(t *testing.T) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key := p256(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{"h2"}}, pool
}

func tlcpServer(t *testing.T) (*authorityKey, *tlcp.Config) {
	t.Helper()
	root := newAuthority(t, "root", nil)
	pair, err := tlcp.NewPair(root.leaf(smx509.KeyUsageDigitalSignature), root.leaf(usageEnc))
	if err != nil {
		t.Fatal(err)
	}
	return root, &tlcp.Config{Certificates: []*tlcp.Pair{pair}, NextProtos: []string{"h2", "http/1.1"}, SessionCache: tlcp.NewLRUSessionCache(16)}
}

// onePort serves both protocols as the gateway does.
func onePort(tlsCfg *tls.Config, tlcpCfg *tlcp.Config) func(net.Conn) {
	return func(c net.Conn) {
		h, err := hello.Read(c)
		if err != nil {
			return
		}
		var s interface {
			net.Conn
			HandshakeContext(context.Context) error
		}
		switch c = hello.Replay(c, h.Raw); {
		case h.TLCP() && tlcpCfg != nil:
			s = tlcp.Server(c, tlcpCfg)
		case !h.TLCP() && tlsCfg != nil:
			s = tls.Server(c, tlsCfg)
		default:
			return
		}
		if s.HandshakeContext(context.Background()) == nil {
			io.Copy(io.Discard, s)
		}
	}
}

func TestGoodServerOfBothProtocols(t *testing.T) {
	tlsCfg, pool := tlsServer(t)
	root, tlcpCfg := tlcpServer(t)
	addr := serve(t, onePort(tlsCfg, tlcpCfg))
	r, text := examine(t, addr, func(o *ServerOptions) { o.Roots, o.TLCPRoots = pool, []*smx509.Certificate{root.cert} })
	if r.Err() != nil || r.Findings.Count(Warning) > 0 {
		t.Errorf("a good server: %v\n%s", r.Err(), text)
	}
	for _, want := range []string{"tls-good", "tlcp-good", "tlcp-trusted", "pair-good", "resumption"} {
		if !r.Findings.Has(want) {
			t.Errorf("%s is missing:\n%s", want, text)
		}
	}
	taken := func(o []Offer) (out []bool) {
		for _, x := range o {
			out = append(out, x.Taken)
		}
		return out
	}
	if got := taken(r.TLS.Versions); !slices.Equal(got, []bool{true, true, false, false}) {
		t.Errorf("TLS versions taken: %v", got)
	}
	if got := taken(r.TLCP.Suites); !slices.Equal(got, []bool{true, true, false, false}) {
		t.Errorf("TLCP suites taken: %v", got)
	}
	if !r.TLS.Resumption || !r.TLCP.Resumption || r.TLS.ALPN != "h2" || r.TLCP.ALPN != "h2" || r.TLS.ClientCert != certNone || r.TLCP.ClientCert != certNone {
		t.Errorf("got %+v\n%+v", r.TLS, r.TLCP)
	}
	if len(r.TLCP.Certificates) != 2 || r.TLCP.Certificates[0].Role != "sign" || r.TLCP.Certificates[1].Role != "enc" {
		t.Errorf("got %+v", r.TLCP.Certificates)
	}
}

func TestServersThatDemandOrAskForCertificates(t *testing.T) {
	tlsCfg, pool := tlsServer(t)
	root, tlcpCfg := tlcpServer(t)
	tlcpCfg.ClientCAs = smx509.NewCertPool()
	tlcpCfg.ClientCAs.AddCert(root.cert)
	for want, set := range map[string]func(){
		certAsked: func() { tlsCfg.ClientAuth, tlcpCfg.ClientAuth = tls.RequestClientCert, tlcp.VerifyClientCertIfGiven },
		certDemanded: func() {
			tlsCfg.ClientAuth, tlcpCfg.ClientAuth = tls.RequireAnyClientCert, tlcp.RequireAndVerifyClientCert
		},
	} {
		set()
		a, b := tlsCfg.Clone(), tlcpCfg.Clone()
		r, text := examine(t, serve(t, onePort(a, b)), func(o *ServerOptions) { o.Roots, o.TLCPRoots = pool, []*smx509.Certificate{root.cert} })
		if r.TLS.ClientCert != want || r.TLCP.ClientCert != want || r.Err() != nil {
			t.Errorf("%s: got TLS %s, TLCP %s, %v\n%s", want, r.TLS.ClientCert, r.TLCP.ClientCert, r.Err(), text)
		}
		if ecdhe := r.TLCP.Suites[2].Taken && r.TLCP.Suites[3].Taken; ecdhe != (want == certDemanded) {
			t.Errorf("%s: ECDHE taken: %v", want, ecdhe)
		}
	}
}

func TestWrongNamesAndRootsOfAServer(t *testing.T) {
	tlsCfg, _ := tlsServer(t)
	_, tlcpCfg := tlcpServer(t)
	_, pool := tlsServer(t)
	stranger := newAuthority(t, "root", nil)
	r, text := examine(t, serve(t, onePort(tlsCfg, tlcpCfg)), func(o *ServerOptions) {
		o.ServerName, o.Roots, o.TLCPRoots = "other.test", pool, []*smx509.Certificate{stranger.cert}
	})
	for _, want := range []string{
		"The TLS certificate is not for other.test (it is for: " + host + ")",
		"The signing certificate is not for other.test", "The encryption certificate is not for other.test",
		"The chain of the TLS certificate does not lead", "The chain of the signing certificate does not lead", "The chain of the encryption certificate does not lead",
		"TLS 证书不包含名称 other.test",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing:\n%s", want, text)
		}
	}
	if r.Err() == nil || r.Findings.Has("tlcp-trusted") {
		t.Errorf("got %v", codes(r.Findings))
	}
}

// script answers a TLCP hello with a flight of the test's own.
type script struct {
	certs  [][]byte
	signer *sm2.PrivateKey
	covers []byte // DER of the certificate that is signed
	tail   []byte // in place of ServerHelloDone
}

func record(kind byte, version uint16, body []byte) []byte {
	return append([]byte{kind, byte(version >> 8), byte(version), byte(len(body) >> 8), byte(len(body))}, body...)
}

func message(kind byte, body []byte) []byte {
	return record(22, tlcp.Version, append([]byte{kind, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...))
}

func vec24(b []byte) []byte {
	return append([]byte{byte(len(b) >> 16), byte(len(b) >> 8), byte(len(b))}, b...)
}

func (s script) serve(c net.Conn) {
	h, err := hello.Read(c)
	if err != nil || !h.TLCP() || h.Suites[0]&0xff == 0x51 || h.Suites[0]&0xff == 0x11 {
		return
	}
	random := make([]byte, 32)
	clientRandom := h.Raw[5+4+2 : 5+4+2+32]
	reply := append([]byte{1, 1}, random...)
	reply = append(reply, 0, byte(h.Suites[0]>>8), byte(h.Suites[0]), 0)
	out := message(2, reply)
	var list []byte
	for _, der := range s.certs {
		list = append(list, vec24(der)...)
	}
	out = append(out, message(11, vec24(list))...)
	signed := slices.Concat(clientRandom, random, vec24(s.covers))
	sig, err := s.signer.Sign(rand.Reader, signed, sm2.DefaultSM2SignerOpts)
	if err != nil {
		return
	}
	out = append(out, message(12, append([]byte{byte(len(sig) >> 8), byte(len(sig))}, sig...))...)
	if s.tail == nil {
		s.tail = message(14, nil)
	}
	c.Write(append(out, s.tail...))
	io.Copy(io.Discard, c)
}

// TestServersThatAreWrong plants one fault of a server at a time.
func TestServersThatAreWrong(t *testing.T) {
	root := newAuthority(t, "root", nil)
	sign, enc := root.leaf(smx509.KeyUsageDigitalSignature), root.leaf(usageEnc)
	s, e := sign.Chain[0].Raw, enc.Chain[0].Raw
	signKey, encKey := sign.Key.(*sm2.PrivateKey), enc.Key.(*sm2.PrivateKey)
	for name, c := range map[string]struct {
		script script
		want   string
	}{
		"pair in the wrong order":     {script{certs: [][]byte{e, s}, signer: signKey, covers: e}, "order"},
		"signed by the wrong key":     {script{certs: [][]byte{s, e}, signer: encKey, covers: e}, "tlcp-signed-enc"},
		"signed by a strange key":     {script{certs: [][]byte{s, e}, signer: sm2Key(t), covers: e}, "tlcp-signed-none"},
		"covers the wrong one":        {script{certs: [][]byte{s, e}, signer: signKey, covers: s}, "tlcp-covers"},
		"one certificate":             {script{certs: [][]byte{s}, signer: signKey, covers: s}, "one-leaf"},
		"no certificate":              {script{signer: signKey, covers: s}, "no-leaf"},
		"not a certificate":           {script{certs: [][]byte{s, {1, 2, 3}}, signer: signKey, covers: s}, "cert-unparsable"},
		"breaks off":                  {script{certs: [][]byte{s, e}, signer: signKey, covers: e, tail: []byte{22, 3, 3, 0, 1, 1}}, "tlcp-broken"},
		"fails behind its good hello": {script{certs: [][]byte{s, e}, signer: signKey, covers: e}, "tlcp-handshake"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, text := examine(t, serve(t, c.script.serve), func(o *ServerOptions) {
				o.TLCPRoots, o.Step = []*smx509.Certificate{root.cert}, time.Second
			})
			if !r.Findings.Has(c.want) || r.Err() == nil {
				t.Errorf("%s is missing:\n%s", c.want, text)
			}
		})
	}
}

// TestServersOfAnotherKind: whatever is at the other end, the examination ends
// in time and says something.
func TestServersOfAnotherKind(t *testing.T) {
	garbage := make([]byte, 1<<16)
	rand.Read(garbage)
	endless := record(21, tlcp.Version, []byte{1, 90}) // a warning, again and again
	for name, c := range map[string]struct {
		serve func(net.Conn)
		want  string
		says  string
	}{
		"plain HTTP": {func(c net.Conn) {
			c.Read(make([]byte, 1))
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n\x1b[31m")
		}, "plain", "HTTP/1.1 400 Bad Request"},
		"SSH":          {func(c net.Conn) { io.WriteString(c, "SSH-2.0-OpenSSH_9.2\r\n"); c.Read(make([]byte, 1)) }, "plain", "SSH-2.0"},
		"closes":       {func(net.Conn) {}, "silent", ""},
		"says nothing": {func(c net.Conn) { io.Copy(io.Discard, c) }, "silent", ""},
		"garbage":      {func(c net.Conn) { c.Write(garbage); io.Copy(io.Discard, c) }, "silent", ""},
		"endless warnings": {func(c net.Conn) {
			for {
				if _, err := c.Write(endless); err != nil {
					return
				}
			}
		}, "silent", ""},
		"endless handshake": {func(c net.Conn) {
			c.Write(record(22, tlcp.Version, []byte{2, 0, 0xff, 0xff}))
			for {
				if _, err := c.Write(record(22, tlcp.Version, []byte{1})); err != nil {
					return
				}
			}
		}, "silent", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			r, text := examine(t, serve(t, c.serve), func(o *ServerOptions) { o.Timeout, o.Step = 4*time.Second, time.Second })
			if took := time.Since(start); took > 15*time.Second {
				t.Errorf("it took %s", took)
			}
			if !r.Findings.Has(c.want) || r.Err() == nil || !strings.Contains(text, c.says) || strings.Contains(text, "\x1b") {
				t.Errorf("%s is missing:\n%s", c.want, text)
			}
		})
	}
	if r, text := examine(t, "127.0.0.1:1"); !r.Findings.Has("connect") {
		t.Errorf("a closed port:\n%s", text)
	}
	if r, text := examine(t, "nowhere"); !r.Findings.Has("connect") {
		t.Errorf("no port:\n%s", text)
	}
}

func TestServerOfTLSOnly(t *testing.T) {
	cfg, pool := tlsServer(t)
	cfg.MinVersion, cfg.SessionTicketsDisabled = tls.VersionTLS10, true
	addr := serve(t, onePort(cfg, nil))
	r, text := examine(t, addr, func(o *ServerOptions) { o.Roots = pool })
	if r.Err() != nil || !r.Findings.Has("tls-old") || !r.Findings.Has("tlcp-none") || r.TLS.Resumption {
		t.Errorf("%v\n%s", r.Err(), text)
	}
	root := newAuthority(t, "root", nil)
	if r, text = examine(t, addr, func(o *ServerOptions) { o.Roots, o.TLCPRoots = pool, []*smx509.Certificate{root.cert} }); !r.Findings.Has("tlcp-none-but") {
		t.Errorf("a root was given:\n%s", text)
	}
}
