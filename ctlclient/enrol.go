package ctlclient

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// EnrolConfig is what [Enrol] needs. The zero value of an optional field
// selects its default.
type EnrolConfig struct {
	Code       string // the one-time code; required
	Dir        string // key folder to make; must not hold keys of another enrolment; required
	Passphrase []byte // encrypts the keys; required
	DeviceName string // default: the host name
	DeviceType string // default: the kind of the code
	SystemType string // default: the system and architecture of the build
	Iterations int    // PBKDF2 iterations; default keystore.DefaultIterations
	Dial       func(ctx context.Context, network, addr string) (net.Conn, error)
	Now        func() time.Time
}

// Enrolled is what an enrolment gave.
type Enrolled struct {
	Kind      string // wire.EnrolAgent, EnrolGateway or EnrolApp
	ID        string
	DeviceID  string
	ControlID string
	URL       string // base of the control center
}

// enrolTimeout bounds the one call of an enrolment.
const enrolTimeout = 30 * time.Second

// Enrol makes the five keys in cfg.Dir, has them certified with the one-time
// code and writes the certificates and the trust files. The keys never leave.
// The server is known by the fingerprint in the code alone; nothing is trusted
// that the system trusts.
//
// Keys that an earlier try left without certificates are used again, so that a
// try may be repeated. A refusal by the control center is a [*RefusedError].
func Enrol(ctx context.Context, cfg EnrolConfig) (*Enrolled, error) {
	code, err := wire.ParseEnrolCode(cfg.Code)
	if err != nil {
		return nil, err
	}
	if cfg.Dir == "" || len(cfg.Passphrase) == 0 {
		return nil, errors.New("enrol: a folder and a passphrase are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	keys, err := keystore.New(keystore.Config{Dir: cfg.Dir, Passphrase: cfg.Passphrase, Iterations: cfg.Iterations})
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, keystore.TLS+".crt")); err == nil {
		return nil, fmt.Errorf("enrol: %s holds an enrolled party already (choose another folder)", cfg.Dir)
	}
	req, err := enrolRequest(keys, &cfg, code)
	if err != nil {
		return nil, err
	}
	reply, err := postEnrol(ctx, &cfg, code, req)
	if err != nil {
		return nil, err
	}
	if err := checkEnrolled(keys, &cfg, code, reply); err != nil {
		return nil, err
	}
	if err := writeEnrolled(keys, reply); err != nil {
		return nil, err
	}
	if reply.Home != nil && len(reply.Home.Gateways) > 0 {
		if err := errors.Join(reply.Home.Check(), StoreHome(keys, reply.Home)); err != nil {
			return nil, fmt.Errorf("enrol: %w", err)
		}
	}
	return &Enrolled{Kind: code.Kind, ID: reply.ID, DeviceID: reply.DeviceID, ControlID: reply.ControlID, URL: reply.Control.URL}, nil
}

// enrolRequest makes the keys and the requests for their certificates. Who we
// will be is the control center's to say.
func enrolRequest(keys *keystore.Store, cfg *EnrolConfig, code wire.EnrolCode) (*wire.EnrolRequest, error) {
	r := &wire.EnrolRequest{Secret: code.Secret, DeviceName: cfg.DeviceName, DeviceType: cfg.DeviceType, SystemType: cfg.SystemType}
	if r.DeviceName == "" {
		r.DeviceName, _ = os.Hostname()
	}
	if r.DeviceType == "" {
		r.DeviceType = code.Kind
	}
	if r.SystemType == "" {
		r.SystemType = runtime.GOOS + "-" + runtime.GOARCH
	}
	for _, k := range []struct {
		name string
		kind keystore.Kind
		csr  *[]byte
	}{
		{keystore.TLS, keystore.P256, &r.CSR.TLS},
		{keystore.TLCPSign, keystore.SM2, &r.CSR.TLCPSign},
		{keystore.TLCPEnc, keystore.SM2, &r.CSR.TLCPEnc},
		{keystore.Sign, keystore.SM2, &r.CSR.Sign},
		{keystore.Enc, keystore.SM2, &r.CSR.Enc},
	} {
		if !keys.Has(k.name) {
			if err := keys.Generate(k.name, k.kind); err != nil {
				return nil, err
			}
		}
		csr, err := keys.CSR(k.name, certid.Identity{}, nil)
		if err != nil {
			return nil, err
		}
		*k.csr = csr
	}
	if !keys.Has(keystore.State) {
		if err := keys.Generate(keystore.State, keystore.P256); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// postEnrol posts the request over a channel whose chain ends in the root with
// the fingerprint of the code: by TLCP when the code names a root of TLCP, else
// by TLS. Neither becomes the other.
func postEnrol(ctx context.Context, cfg *EnrolConfig, code wire.EnrolCode, q *wire.EnrolRequest) (*wire.EnrolReply, error) {
	body, err := wire.EncodeExtension(q)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(code.URL, "/")+"/ztna/v1/enrol", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	tr := &http.Transport{DialContext: cfg.Dial, DisableKeepAlives: true, DisableCompression: true}
	if code.TLCPRoot != "" {
		tr.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialPinned(ctx, cfg, code, network, addr)
		}
	} else {
		tr.TLSClientConfig = &tls.Config{
			MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, // verified below, by the fingerprint
			VerifyConnection: func(s tls.ConnectionState) error { return verifyPinned(s, code.Fingerprint, cfg.Now()) },
		}
	}
	client := &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     tr,
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", code.URL, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, wire.MaxMessage+1))
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", code.URL, err)
	}
	if resp.StatusCode != http.StatusOK {
		if r, err := wire.DecodeExtension[wire.Reply](raw); err == nil && r.Result != "" {
			return nil, &RefusedError{Reason: resultReason(r.Result), Result: r.Result}
		}
		if resp.StatusCode == http.StatusForbidden {
			return nil, &RefusedError{Reason: reason.EnrolCode, Result: reason.EnrolCode.Result()}
		}
		return nil, fmt.Errorf("enrol at %s: HTTP status %d", code.URL, resp.StatusCode)
	}
	reply, err := wire.DecodeExtension[wire.EnrolReply](raw)
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", code.URL, err)
	}
	return reply, nil
}

// dialPinned connects by one-way TLCP to the server whose root has the
// fingerprint of the code. There is no pair of ours yet, so the suite is an ECC
// one, without forward secrecy: the secret that travels works once.
func dialPinned(ctx context.Context, cfg *EnrolConfig, code wire.EnrolCode, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	dial := cfg.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	raw, err := dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := tlcp.Client(raw, &tlcp.Config{
		ServerName: host, Time: cfg.Now, NextProtos: []string{"http/1.1"},
		PinnedRoot: func(root *smx509.Certificate) bool { return hasDigest(sm3.Sum(root.Raw), code.TLCPRoot) },
	})
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%w (is the server the one that the code names?)", err), raw.Close())
	}
	return c, nil
}

// hasDigest compares a digest with one in hexadecimal.
func hasDigest(sum [32]byte, hexDigest string) bool {
	want, err := hex.DecodeString(hexDigest)
	return err == nil && subtle.ConstantTimeCompare(sum[:], want) == 1
}

// verifyPinned verifies the server's chain to the authority among the
// certificates it sent that has the fingerprint, and the host name. A server
// that does not send its root cannot be known by a fingerprint.
func verifyPinned(s tls.ConnectionState, fingerprint string, now time.Time) error {
	roots, between, found := x509.NewCertPool(), x509.NewCertPool(), false
	for _, c := range s.PeerCertificates[1:] {
		if c.IsCA && hasDigest(sha256.Sum256(c.Raw), fingerprint) {
			roots.AddCert(c)
			found = true
		} else {
			between.AddCert(c)
		}
	}
	if !found {
		return errors.New("the server is not the one that the code names, or does not send its root certificate")
	}
	_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, DNSName: s.ServerName, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}

// checkEnrolled checks that the answer hangs together before a byte of it is
// written: the roots of the channels are those of the code, every certificate is for our
// key and carries the identity named, under the root named.
func checkEnrolled(keys *keystore.Store, cfg *EnrolConfig, code wire.EnrolCode, r *wire.EnrolReply) error {
	fault := func(format string, args ...any) error {
		return fmt.Errorf("enrol: the answer of %s is not sound: %w", code.URL, fmt.Errorf(format, args...))
	}
	block, _ := pem.Decode([]byte(r.Roots.TLS))
	if block == nil || !hasDigest(sha256.Sum256(block.Bytes), code.Fingerprint) {
		return fault("its TLS root is not the one of the code")
	}
	if block, _ = pem.Decode([]byte(r.Roots.TLCP)); code.TLCPRoot != "" && (block == nil || !hasDigest(sm3.Sum(block.Bytes), code.TLCPRoot)) {
		return fault("its TLCP root is not the one of the code")
	}
	want := certid.Identity{Device: r.DeviceID}
	switch code.Kind {
	case wire.EnrolGateway:
		want.Gateway = r.ID
	case wire.EnrolAgent:
		want.Agent = r.ID
	default:
		want.App = r.ID
	}
	if r.ID == "" || code.Kind != wire.EnrolApp && r.DeviceID == "" || r.ControlID == "" {
		return fault("an identifier is missing")
	}
	for _, c := range []struct{ name, chain, root string }{
		{keystore.TLS, r.Certs.TLS, r.Roots.TLS},
		{keystore.TLCPSign, r.Certs.TLCPSign, r.Roots.TLCP}, {keystore.TLCPEnc, r.Certs.TLCPEnc, r.Roots.TLCP},
		{keystore.Sign, r.Certs.Sign, r.Roots.Message}, {keystore.Enc, r.Certs.Enc, r.Roots.Message},
	} {
		leaf, err := verifyPEM(c.chain, c.root, cfg.Now())
		if err != nil {
			return fault("certificate %s: %w", c.name, err)
		}
		if id, err := certid.OfSM(leaf); err != nil || id != want {
			return fault("certificate %s is for %+v: %w", c.name, id, err)
		}
	}
	for name, chain := range map[string]string{keystore.ControlSign: r.Control.Sign, keystore.ControlEnc: r.Control.Enc} {
		leaf, err := verifyPEM(chain, r.Roots.Message, cfg.Now())
		if err != nil {
			return fault("certificate %s: %w", name, err)
		}
		if id, err := certid.OfSM(leaf); err != nil || id.Control != r.ControlID {
			return fault("certificate %s is not of %s: %w", name, r.ControlID, err)
		}
	}
	return nil
}

// verifyPEM verifies a chain, leaf first, under a root and returns the leaf.
func verifyPEM(chain, root string, now time.Time) (*smx509.Certificate, error) {
	certs, err := parsePEM(chain)
	if err != nil {
		return nil, err
	}
	roots := smx509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(root)) {
		return nil, errors.New("no root certificate")
	}
	return certs[0], verifyChain(certs, roots, now)
}

func parsePEM(text string) ([]*smx509.Certificate, error) {
	var out []*smx509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := smx509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no certificate")
	}
	return out, nil
}

// writeEnrolled writes the trust files, then the certificates, the TLS one last:
// it marks the folder as enrolled.
func writeEnrolled(keys *keystore.Store, r *wire.EnrolReply) error {
	for _, f := range []struct {
		put  func(string, []byte) error
		name string
		pem  string
	}{
		{keys.PutRoot, keystore.TLSRoot, r.Roots.TLS},
		{keys.PutRoot, keystore.TLCPRoot, r.Roots.TLCP},
		{keys.PutRoot, keystore.MessageRoot, r.Roots.Message},
		{keys.PutRoot, keystore.ListRoot, r.Roots.List},
		{keys.PutChain, keystore.ControlSign, r.Control.Sign},
		{keys.PutChain, keystore.ControlEnc, r.Control.Enc},
		{keys.PutChain, keystore.Enc, r.Certs.Enc},
		{keys.PutChain, keystore.Sign, r.Certs.Sign},
		{keys.PutChain, keystore.TLCPEnc, r.Certs.TLCPEnc},
		{keys.PutChain, keystore.TLCPSign, r.Certs.TLCPSign},
		{keys.PutChain, keystore.TLS, r.Certs.TLS},
	} {
		if err := f.put(f.name, []byte(f.pem)); err != nil {
			return fmt.Errorf("enrol: %w", err)
		}
	}
	return nil
}
