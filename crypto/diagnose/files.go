package diagnose

import (
	"bytes"
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/emmansun/gmsm/pkcs8"
	"github.com/emmansun/gmsm/smx509"
)

// Bounds on what files may hold.
const (
	maxFile  = 1 << 20 // bytes
	maxCerts = 64      // certificates in all files together
)

// FilesOptions say what [CheckFiles] expects.
type FilesOptions struct {
	CA         string   // file of the root certificates; empty: chains are not checked
	Names      []string // each must stand in both certificates
	Client     bool     // certificates of a client
	Passphrase []byte   // of encrypted private keys; empty: those are not checked
	Now        time.Time
}

// FilesReport is what was found in files.
type FilesReport struct {
	Files        []string   `json:"files"`
	Certificates []CertInfo `json:"certificates"`
	Keys         int        `json:"private_keys"` // that could be read
	Findings     Findings   `json:"findings"`
}

// Err returns an error when there is a fault.
func (r *FilesReport) Err() error { return r.Findings.Err("check certificates") }

// Write prints the report for people.
func (r *FilesReport) Write(w io.Writer) error {
	writeCerts(w, r.Certificates)
	return r.Findings.Write(w)
}

// privateKey is a key and the file it stands in.
type privateKey struct {
	file string
	key  crypto.Signer
}

// CheckFiles reads the two certificates of a TLCP party, their intermediates
// and, when they are there, their private keys from PEM files in any order, and
// says what is wrong with which.
func CheckFiles(files []string, o FilesOptions) *FilesReport {
	r := &FilesReport{Files: files}
	var certs []*smx509.Certificate
	var keys []privateKey
	for _, file := range files {
		c, k := r.read(file, o.Passphrase)
		certs, keys = append(certs, c...), append(keys, k...)
	}
	if len(certs) > maxCerts {
		r.Findings.add("cert-unparsable", files[len(files)-1], fmt.Sprintf("%d certificates, at most %d", len(certs), maxCerts))
		certs = certs[:maxCerts]
	}
	po := PairOptions{Names: o.Names, Now: o.Now, Client: o.Client}
	if o.CA != "" {
		roots, err := ReadRoots(o.CA)
		if err != nil {
			r.Findings.add("ca-bad", o.CA, err)
		}
		po.Roots = roots
	}
	p := CheckPair(certs, po)
	r.Certificates = p.Infos()
	r.Findings = append(r.Findings, p.Findings...)
	r.Keys = len(keys)
	r.checkKeys(p, keys)
	return r
}

func (r *FilesReport) checkKeys(p *Pair, keys []privateKey) {
	var sign, enc bool
	for _, k := range keys {
		s, e := holds(p.Sign, k.key), holds(p.Enc, k.key)
		if !s && !e {
			r.Findings.add("key-other", k.file)
		}
		sign, enc = sign || s, enc || e
	}
	switch {
	case len(keys) == 0:
	case sign && enc:
		r.Findings.add("keys-good")
	case !sign && p.Sign != nil:
		r.Findings.add("key-missing", signRole)
	case !enc && p.Enc != nil:
		r.Findings.add("key-missing", encRole)
	}
}

func holds(c *smx509.Certificate, key crypto.Signer) bool {
	if c == nil {
		return false
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(c.PublicKey)
}

// read returns the certificates and keys of a file, and finds what is wrong
// with it.
func (r *FilesReport) read(file string, passphrase []byte) (certs []*smx509.Certificate, keys []privateKey) {
	data, mode, err := readFile(file)
	if err != nil {
		r.Findings.add("file-unreadable", file, err)
		return nil, nil
	}
	found := false
	if len(data) > 0 && data[0] == 0x30 { // DER
		if c, err := smx509.ParseCertificate(data); err == nil {
			return []*smx509.Certificate{c}, nil
		}
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		switch {
		case block.Type == "CERTIFICATE" || block.Type == "TRUSTED CERTIFICATE":
			found = true
			c, err := smx509.ParseCertificate(block.Bytes)
			if err != nil {
				r.Findings.add("cert-unparsable", file, err)
				continue
			}
			certs = append(certs, c)
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			found = true
			if mode.Perm()&0o077 != 0 {
				r.Findings.add("key-mode", file, fmt.Sprintf("%04o", mode.Perm()))
			}
			key, err := parseKey(block, passphrase)
			switch {
			case errors.Is(err, errEncrypted):
				r.Findings.add("key-encrypted", file)
			case err != nil:
				r.Findings.add("key-unparsable", file, err)
			default:
				keys = append(keys, privateKey{file, key})
			}
		}
	}
	if !found {
		r.Findings.add("file-empty", file)
	}
	return certs, keys
}

func readFile(file string) (data []byte, mode os.FileMode, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, cause(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, 0, cause(err)
	}
	if st.IsDir() {
		return nil, 0, errors.New("it is a folder")
	}
	data, err = io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, 0, cause(err)
	}
	if len(data) > maxFile {
		return nil, 0, fmt.Errorf("longer than %d bytes", maxFile)
	}
	return data, st.Mode(), nil
}

// cause drops the path of an error that is printed beside it.
func cause(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

var errEncrypted = errors.New("the key is encrypted")

// parseKey reads a private key as authorities and tools write it: PKCS#8, plain
// or encrypted, SEC 1, PKCS#1.
func parseKey(block *pem.Block, passphrase []byte) (crypto.Signer, error) {
	der := block.Bytes
	var key any
	var err error
	switch {
	case block.Type == "ENCRYPTED PRIVATE KEY":
		if len(passphrase) == 0 {
			return nil, errEncrypted
		}
		key, err = pkcs8.ParsePKCS8PrivateKey(der, passphrase)
	case block.Headers["DEK-Info"] != "":
		if len(passphrase) == 0 {
			return nil, errEncrypted
		}
		//lint:ignore SA1019 people have such files: what is in them is to be told, nothing is made of them
		if der, err = smx509.DecryptPEMBlock(block, passphrase); err != nil {
			return nil, err
		}
		key, err = smx509.ParseTypedECPrivateKey(der)
	case block.Type == "PRIVATE KEY":
		key, err = smx509.ParsePKCS8PrivateKey(der)
	case block.Type == "RSA PRIVATE KEY":
		key, err = smx509.ParsePKCS1PrivateKey(der)
	default: // EC, SM2
		key, err = smx509.ParseTypedECPrivateKey(der)
	}
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", key)
	}
	return signer, nil
}

// ReadRoots reads the certificates of a PEM file that are to be trusted.
func ReadRoots(file string) ([]*smx509.Certificate, error) {
	data, _, err := readFile(file)
	if err != nil {
		return nil, err
	}
	var roots []*smx509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := smx509.ParseCertificate(bytes.Clone(block.Bytes))
		if err != nil {
			return nil, err
		}
		roots = append(roots, c)
	}
	if len(roots) == 0 {
		return nil, errors.New("no certificate in PEM")
	}
	return roots, nil
}
