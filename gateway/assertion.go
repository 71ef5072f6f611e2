package gateway

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// assertionKeys reads the keys of identity assertions, PEM (PKCS#8), the first
// of which signs. A file that is not there is made: applications remember keys,
// so these outlive a restart, and all gateways of a site may have the same.
func assertionKeys(path string) ([]crypto.Signer, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		raw, err = makeAssertionKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("proxy.assertion_key_file: %w", err)
	}
	if err := private("proxy.assertion_key_file", path); err != nil {
		return nil, err
	}
	var keys []crypto.Signer
	for {
		var block *pem.Block
		if block, raw = pem.Decode(raw); block == nil {
			break
		}
		k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("proxy.assertion_key_file: read %s: %w", path, err)
		}
		ec, ok := k.(*ecdsa.PrivateKey)
		if !ok || ec.Curve != elliptic.P256() {
			return nil, fmt.Errorf("proxy.assertion_key_file: a key of %s is not P-256", path)
		}
		keys = append(keys, ec)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("proxy.assertion_key_file: no PEM key in %s (remove the file, and one is made)", path)
	}
	return keys, nil
}

func makeAssertionKey(path string) ([]byte, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	raw := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(raw)
	return raw, errors.Join(err, f.Sync(), f.Close())
}
