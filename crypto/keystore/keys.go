package keystore

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/emmansun/gmsm/pkcs"
	"github.com/emmansun/gmsm/pkcs8"
	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
	"golang.org/x/sync/errgroup"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/internal/disk"
)

const (
	pemKey   = "ENCRYPTED PRIVATE KEY"
	saltSize = 16
)

// Generate makes the private key name and writes it. It fails with an error
// that wraps fs.ErrExist when there is one already: a key is replaced by
// making another and [Store.Promote].
func (s *Store) Generate(name string, kind Kind) error {
	if err := checkName(name); err != nil {
		return err
	}
	var key crypto.Signer
	var err error
	switch kind {
	case P256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), s.cfg.Rand)
	case SM2:
		key, err = sm2.GenerateKey(s.cfg.Rand)
	default:
		err = fmt.Errorf("unknown kind %d", kind)
	}
	if err != nil {
		return fmt.Errorf("generate key %s: %w", name, err)
	}
	return s.Import(name, key)
}

// Import writes a private key that was made elsewhere, *ecdsa.PrivateKey on
// P-256 or *sm2.PrivateKey, as the key name. It fails like [Store.Generate]
// when there is one already.
func (s *Store) Import(name string, key crypto.Signer) error {
	if err := checkName(name); err != nil {
		return err
	}
	block, err := s.encrypt(key)
	if err != nil {
		return fmt.Errorf("encrypt key %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := writeFile(s.file(name, keyExt), block, 0o600, false); err != nil {
		return err
	}
	s.keys[name] = key
	return nil
}

// encrypt returns key as PEM, encrypted by the algorithms of its own world: a
// P-256 key by PBKDF2-HMAC-SHA256 and AES-256-CBC, which every tool reads, an
// SM2 key by PBKDF2-HMAC-SM3 and SM4-CBC.
func (s *Store) encrypt(key crypto.Signer) ([]byte, error) {
	var pbes pkcs.PBESEncrypter
	switch k := key.(type) {
	case *sm2.PrivateKey:
		pbes = pkcs.NewPBESEncrypter(pkcs.SM4CBC, pkcs.NewPBKDF2Opts(pkcs.SM3, saltSize, s.cfg.Iterations))
	case *ecdsa.PrivateKey:
		if k.Curve != elliptic.P256() {
			return nil, errors.New("the key is not on curve P-256")
		}
		pbes = pkcs.NewPBESEncrypter(pkcs.AES256CBC, pkcs.NewPBKDF2Opts(pkcs.SHA256, saltSize, s.cfg.Iterations))
	default:
		return nil, fmt.Errorf("unknown key type %T", key)
	}
	der, err := pkcs8.MarshalPrivateKey(key, s.cfg.Passphrase, pbes)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

// Has reports whether there is a file for the private key name; whether it can
// be read is another question.
func (s *Store) Has(name string) bool {
	if checkName(name) != nil {
		return false
	}
	_, err := os.Lstat(s.file(name, keyExt))
	return err == nil
}

// Signer returns the private key name for signatures: an SM2 key signs with
// SM2-with-SM3 when it is given sm2.NewSM2SignerOption(true, nil). The error
// wraps fs.ErrNotExist when there is no such key.
func (s *Store) Signer(name string) (crypto.Signer, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.load(name)
}

// Preload decrypts the keys of these names, as many at once as there are
// processors: deriving a key from the passphrase is slow on purpose. Keys that
// are loaded already, and names without a key, are passed over.
func (s *Store) Preload(names ...string) error {
	var all errgroup.Group
	all.SetLimit(runtime.GOMAXPROCS(0))
	for _, name := range names {
		if checkName(name) != nil || !s.Has(name) {
			continue
		}
		s.mu.Lock()
		_, loaded := s.keys[name]
		s.mu.Unlock()
		if loaded {
			continue
		}
		all.Go(func() error {
			key, err := s.decrypt(name)
			if err != nil {
				return err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if _, loaded := s.keys[name]; !loaded {
				s.keys[name] = key
			}
			return nil
		})
	}
	return all.Wait()
}

// load returns a key, decrypted when it is asked for first. The caller holds mu.
func (s *Store) load(name string) (crypto.Signer, error) {
	if k, ok := s.keys[name]; ok {
		return k, nil
	}
	key, err := s.decrypt(name)
	if err == nil {
		s.keys[name] = key
	}
	return key, err
}

// decrypt reads and decrypts a key.
func (s *Store) decrypt(name string) (crypto.Signer, error) {
	if err := checkDir(s.cfg.Dir); err != nil {
		return nil, err
	}
	path := s.file(name, keyExt)
	data, err := readFile(path, secret, maxFile)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != pemKey || len(bytes.TrimSpace(rest)) != 0 {
		return nil, fmt.Errorf("read %s: not one PEM block %q (an unencrypted key is not accepted)", path, pemKey)
	}
	key, _, err := pkcs8.ParsePrivateKey(block.Bytes, s.cfg.Passphrase)
	if err != nil {
		// A wrong passphrase may show as bad padding or as bad content.
		return nil, fmt.Errorf("decrypt %s: the passphrase is wrong or the file is damaged", path)
	}
	var signer crypto.Signer
	switch k := key.(type) {
	case *sm2.PrivateKey:
		signer = k
	case *ecdsa.PrivateKey:
		if k.Curve != elliptic.P256() {
			return nil, fmt.Errorf("read %s: an ECDSA key on %s (P-256 and SM2 are known)", path, k.Params().Name)
		}
		signer = k
	default:
		return nil, fmt.Errorf("read %s: a key of type %T (P-256 and SM2 are known)", path, key)
	}
	return signer, nil
}

// Decrypter returns the SM2 private key name for messages sealed to it.
func (s *Store) Decrypter(name string) (crypto.Decrypter, error) {
	key, err := s.Signer(name)
	if err != nil {
		return nil, err
	}
	d, ok := key.(crypto.Decrypter)
	if !ok {
		return nil, fmt.Errorf("use key %s: a P-256 key does not decrypt (an SM2 key is needed)", name)
	}
	return d, nil
}

// CSR returns a certificate request (DER) for the key name, with id as URIs and
// hosts (names and IP addresses) as further subject alternative names.
func (s *Store) CSR(name string, id certid.Identity, hosts []string) ([]byte, error) {
	key, err := s.Signer(name)
	if err != nil {
		return nil, err
	}
	names, ips, err := certid.SplitHosts(hosts)
	if err == nil && id != (certid.Identity{}) { // before enrolment nobody knows its identity
		err = id.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("make certificate request for key %s: %w", name, err)
	}
	der, err := smx509.CreateCertificateRequest(s.cfg.Rand, &smx509.CertificateRequest{
		Subject:     pkix.Name{CommonName: id.Name()},
		URIs:        id.URIs(),
		DNSNames:    names,
		IPAddresses: ips,
	}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request for key %s: %w", name, err)
	}
	return der, nil
}

// Promote puts the key and certificates of one name in the place of another's,
// which are lost: the way to renew a key is to make NAME.new, have it certified
// and promote it. The two files move one after the other; when a crash comes
// between, a second call completes the move.
func (s *Store) Promote(from, to string) error {
	if err := errors.Join(checkName(from), checkName(to)); err != nil {
		return err
	}
	if from == to {
		return fmt.Errorf("promote key %s: to itself", from)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	holder := from
	if !s.Has(from) {
		holder = to // the key has moved already
	}
	key, err := s.load(holder)
	if err != nil {
		return fmt.Errorf("promote key %s to %s: %w", from, to, err)
	}
	chain, err := s.Chain(from)
	if err == nil {
		err = certifies(chain[0], key)
	}
	if err != nil {
		return fmt.Errorf("promote key %s to %s: %w", from, to, err)
	}
	if holder == from {
		if err := os.Rename(s.file(from, keyExt), s.file(to, keyExt)); err != nil {
			return fmt.Errorf("promote key %s to %s: %w", from, to, cause(err))
		}
		s.keys[to] = key
		delete(s.keys, from)
		if err := disk.SyncDir(s.cfg.Dir); err != nil { // the chain must not move first
			return fmt.Errorf("promote key %s to %s: %w", from, to, cause(err))
		}
	}
	err = os.Rename(s.file(from, certExt), s.file(to, certExt))
	if err == nil {
		err = disk.SyncDir(s.cfg.Dir)
	}
	if err != nil {
		return fmt.Errorf("promote certificate of %s to %s: %w (call Promote again to complete it)", from, to, cause(err))
	}
	return nil
}

// Remove deletes the key name and its certificates; that they are absent is no
// error.
func (s *Store) Remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.keys, name)
	for _, ext := range []string{keyExt, certExt} {
		if err := os.Remove(s.file(name, ext)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove key %s: %w", name, cause(err))
		}
	}
	return nil
}
