package lab

import (
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// SetConfig is what [WriteSet] makes.
type SetConfig struct {
	Dir   string          // made with mode 0700; must not hold a set yet
	Hosts []string        // names and addresses of the server; one at the least
	ID    certid.Identity // of the client
	Life  time.Duration   // of the certificates; default 90 days
}

// Set is the files of a TLCP server and of a client.
type Set struct {
	Root   string // the authority that both trust
	Server tlcp.PairFiles
	Client tlcp.PairFiles
}

// WriteSet writes a TLCP server's and a client's certificates under a fresh
// root, with keys as plain PKCS#8 for whatever program is to use them; every
// file has mode 0600. The root's own key is thrown away: nothing more can be
// issued under it.
func WriteSet(cfg SetConfig) (*Set, error) {
	s, err := writeSet(cfg)
	if err != nil {
		return nil, fmt.Errorf("make TLCP certificates: %w", err)
	}
	return s, nil
}

func writeSet(cfg SetConfig) (*Set, error) {
	if len(cfg.Hosts) == 0 {
		return nil, errors.New("no name of a server")
	}
	ca, err := New(Config{LeafTTL: cfg.Life})
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	s := &Set{Root: filepath.Join(cfg.Dir, "tlcp-root.crt")}
	files[s.Root] = ca.RootPEM(keystore.TLCPRoot)
	for _, p := range []struct {
		name  string
		files *tlcp.PairFiles
		issue func(sign, enc []byte) (a, b []byte, err error)
	}{
		{"server", &s.Server, func(sign, enc []byte) ([]byte, []byte, error) {
			return ca.IssueTLCPWeb(sign, enc, Options{Hosts: cfg.Hosts})
		}},
		{"client", &s.Client, func(sign, enc []byte) ([]byte, []byte, error) {
			a, err := ca.IssueTLCPSign(sign, cfg.ID, Options{})
			if err != nil {
				return nil, nil, err
			}
			b, err := ca.IssueTLCPEnc(enc, cfg.ID, Options{})
			return a, b, err
		}},
	} {
		at := func(name string) string { return filepath.Join(cfg.Dir, p.name+"-"+name) }
		*p.files = tlcp.PairFiles{SignCert: at("sign.crt"), SignKey: at("sign.key"), EncCert: at("enc.crt"), EncKey: at("enc.key")}
		signCSR, signKey, err := request()
		if err != nil {
			return nil, err
		}
		encCSR, encKey, err := request()
		if err != nil {
			return nil, err
		}
		files[p.files.SignKey], files[p.files.EncKey] = signKey, encKey
		if files[p.files.SignCert], files[p.files.EncCert], err = p.issue(signCSR, encCSR); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	for name := range files {
		if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is there already (name another folder)", name)
		}
	}
	for name, data := range files {
		if err := writeNew(name, data); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// WebPair makes keys and certificates of a web server that speaks TLCP, and
// writes them into dir: sign.crt, sign.key, enc.crt, enc.key. Files that are
// there already are an error.
func (c *CA) WebPair(dir string, o Options) (*tlcp.PairFiles, error) {
	signCSR, signKey, err := request()
	if err != nil {
		return nil, err
	}
	encCSR, encKey, err := request()
	if err != nil {
		return nil, err
	}
	sign, enc, err := c.IssueTLCPWeb(signCSR, encCSR, o)
	if err != nil {
		return nil, err
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	p := &tlcp.PairFiles{SignCert: at("sign.crt"), SignKey: at("sign.key"), EncCert: at("enc.crt"), EncKey: at("enc.key")}
	return p, errors.Join(writeNew(p.SignCert, sign), writeNew(p.SignKey, signKey), writeNew(p.EncCert, enc), writeNew(p.EncKey, encKey))
}

// request makes an SM2 key, as PEM, and a certificate request for it, as DER.
func request() (csr, key []byte, err error) {
	k, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if csr, err = smx509.CreateCertificateRequest(rand.Reader, &smx509.CertificateRequest{}, k); err != nil {
		return nil, nil, err
	}
	der, err := smx509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, err
	}
	return csr, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func writeNew(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
