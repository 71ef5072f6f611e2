package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/gateway/listen"
	"github.com/yumen-zt/yumen/internal/alert"
)

// certificateSet chooses certificates by server name: exact names and
// "*.example" patterns, and for every other name the gateway's own.
type certificateSet[C any] struct {
	byName map[string]*C
	own    *C // nil: other names are refused
	none   *C // for clients that send no name; nil: own
}

func (c *certificateSet[C]) pick(name string) (*C, error) {
	if name == "" && c.none != nil {
		return c.none, nil
	}
	if cert, ok := c.byName[name]; ok {
		return cert, nil
	}
	if _, parent, ok := strings.Cut(name, "."); ok {
		if cert, ok := c.byName["*."+parent]; ok {
			return cert, nil
		}
	}
	if c.own == nil {
		return nil, fmt.Errorf("no certificate for %q", name)
	}
	return c.own, nil
}

func (c *certificateSet[C]) put(names []string, cert *C) {
	for _, n := range names {
		c.byName[strings.ToLower(n)] = cert
	}
}

// private refuses a key file that others may read.
func private(at, file string) error {
	if file == "" {
		return nil
	}
	fi, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s: mode %v of %s lets others read it (chmod 600 it)", at, fi.Mode().Perm(), file)
	}
	return nil
}

// newFaces loads every certificate that cfg names and the enrolled ones, and
// returns when they end, by where they are. The profile says which protocols
// there are; a certificate at fault is an error all the same.
func (g *Gateway) newFaces(cfg *Config, keys *keystore.Store) (*listen.Faces, map[string]time.Time, error) {
	ends := map[string]time.Time{}
	own, err := keys.TLSCertificate(keystore.TLS)
	if err != nil {
		return nil, nil, err
	}
	own = listen.Bounded(own)
	ends[cfg.Keys.Dir] = own.Leaf.NotAfter
	certs := &certificateSet[tls.Certificate]{byName: map[string]*tls.Certificate{}, own: &own}
	pairs := &certificateSet[tlcp.Pair]{byName: map[string]*tlcp.Pair{}}
	f := &listen.Faces{
		Certificate: certs.pick, Own: &own, NoTLS: !cfg.Crypto.Profile.TLS(), NoTLCP: !cfg.Crypto.Profile.TLCP(), PreferTLCP: cfg.Crypto.PreferTLCP,
		SealTunnels: cfg.Crypto.SealTunnels,
	}
	if f.ClientRoots, err = keys.TLSRoots(); err != nil {
		return nil, nil, err
	}
	if err := g.ownPair(keys, f, pairs, ends); err != nil {
		return nil, nil, err
	}
	for i, c := range cfg.Certificates {
		at := fmt.Sprintf("certificates[%d]", i)
		if err := g.addCertificate(at, c, certs, ends); err != nil {
			return nil, nil, err
		}
		if err := g.addPair(at, c, pairs, ends); err != nil {
			return nil, nil, err
		}
	}
	if pairs.own != nil || len(pairs.byName) > 0 {
		f.Pair = pairs.pick
	}
	if f.SealTunnels && f.OwnPair == nil {
		return nil, nil, errors.New("crypto.seal_tunnels: needs the gateway's own TLCP pair (enrol again for tlcp-sign and tlcp-enc)")
	}
	if f.NoTLS && f.Pair == nil {
		return nil, nil, errors.New("crypto.profile: gm needs a TLCP pair (enrol again for tlcp-sign and tlcp-enc, or name sign_cert_file and enc_cert_file in certificates)")
	}
	return f, ends, nil
}

// coalesces reports whether the certificate that clients are shown for the
// server name sni is host's, too, and neither demands one of the client.
func (g *Gateway) coalesces(sni, host string) bool {
	s := g.site.Load()
	if s.demands(sni) || s.demands(host) {
		return false
	}
	shown, err := s.faces.Certificate(sni)
	if err != nil {
		return false
	}
	other, err := s.faces.Certificate(host)
	return err == nil && shown == other && shown.Leaf != nil && shown.Leaf.VerifyHostname(host) == nil
}

// ownPair loads the enrolled TLCP pair and the roots of devices. A key folder
// from before TLCP has neither.
func (g *Gateway) ownPair(keys *keystore.Store, f *listen.Faces, pairs *certificateSet[tlcp.Pair], ends map[string]time.Time) error {
	if keys.Has(keystore.TLCPSign) || keys.Has(keystore.TLCPEnc) {
		pair, err := keys.TLCPPair()
		if err != nil {
			return err
		}
		pairs.own = listen.BoundedPair(pair)
		f.OwnPair = pairs.own
		noteEnds(ends, filepath.Join(keys.Dir(), keystore.TLCPSign+".crt"), filepath.Join(keys.Dir(), keystore.TLCPEnc+".crt"), pair)
	}
	roots, err := keys.Root(keystore.TLCPRoot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f.ClientRootsTLCP = roots
	return nil
}

func noteEnds(ends map[string]time.Time, sign, enc string, pair *tlcp.Pair) {
	ends[sign], ends[enc] = pair.SignLeaf().NotAfter, pair.EncLeaf().NotAfter
}

// addCertificate loads the TLS certificate of one entry.
func (g *Gateway) addCertificate(at string, f CertificateFile, set *certificateSet[tls.Certificate], ends map[string]time.Time) error {
	if f.CertFile == "" {
		return nil
	}
	if err := private(at+".key_file", f.KeyFile); err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(f.CertFile, f.KeyFile)
	if err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	if g.now().After(leaf.NotAfter) {
		return fmt.Errorf("%s: %s expired on %s", at, f.CertFile, leaf.NotAfter.Format("2006-01-02"))
	}
	if len(leaf.DNSNames) == 0 {
		return fmt.Errorf("%s: %s names no host (subject alternative names are needed)", at, f.CertFile)
	}
	pair = listen.Bounded(pair)
	ends[f.CertFile] = leaf.NotAfter
	set.put(leaf.DNSNames, &pair)
	return nil
}

// addPair loads the TLCP pair of one entry.
func (g *Gateway) addPair(at string, f CertificateFile, set *certificateSet[tlcp.Pair], ends map[string]time.Time) error {
	if f.SignCertFile == "" {
		return nil
	}
	if err := errors.Join(private(at+".sign_key_file", f.SignKeyFile), private(at+".enc_key_file", f.EncKeyFile)); err != nil {
		return err
	}
	pair, err := tlcp.PairFiles{SignCert: f.SignCertFile, SignKey: f.SignKeyFile, EncCert: f.EncCertFile, EncKey: f.EncKeyFile}.Load(g.now())
	if err != nil {
		return fmt.Errorf("%s: %w (sign_cert_file %s, enc_cert_file %s)", at, err, f.SignCertFile, f.EncCertFile)
	}
	if len(pair.SignLeaf().DNSNames) == 0 {
		return fmt.Errorf("%s: signing certificate: %s names no host (subject alternative names are needed)", at, f.SignCertFile)
	}
	noteEnds(ends, f.SignCertFile, f.EncCertFile, pair)
	pair = listen.BoundedPair(pair)
	set.put(pair.SignLeaf().DNSNames, pair)
	if set.none == nil { // GB/T 38636 has no server names: the first entry is for clients that send none
		set.none = pair
	}
	return nil
}

// certificateWarning is how long before its end a certificate is reported, and
// how often.
const (
	certificateWarning = 14 * 24 * time.Hour
	certificateCheck   = 6 * time.Hour
)

// watchCertificates reports certificates that end soon, until ctx is done.
func (g *Gateway) watchCertificates(ctx context.Context) error {
	tick := time.NewTicker(certificateCheck)
	defer tick.Stop()
	for {
		if soon := g.site.Load().endSoon(g.now()); len(soon) > 0 {
			g.alerts.Raise(alert.Alert{Code: alert.CertExpiring, Detail: strings.Join(soon, "; ")})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// endSoon names the certificates that need to be renewed.
func (s *site) endSoon(now time.Time) []string {
	var soon []string
	for at, end := range s.ends {
		if end.Sub(now) < certificateWarning {
			soon = append(soon, fmt.Sprintf("%s: until %s", at, end.UTC().Format(time.RFC3339)))
		}
	}
	slices.Sort(soon)
	return soon
}
