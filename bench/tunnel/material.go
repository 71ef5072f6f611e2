//go:build linux

package main

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

const (
	gatewayID = "GW000000001"
	alpn      = "yumen/1"
)

var passphrase = []byte("bench")

// makeMaterial writes the keys of both ends below dir.
func makeMaterial(dir string) error {
	ca, err := lab.New(lab.Config{Iterations: 1000})
	if err != nil {
		return err
	}
	hosts := []string{"127.0.0.1", serverAddr}
	if _, err := ca.Party(filepath.Join(dir, "gateway"), passphrase, certid.Identity{Gateway: gatewayID, Device: "DEV99999999"}, hosts); err != nil {
		return err
	}
	_, err = ca.Party(filepath.Join(dir, "agent"), passphrase, certid.Identity{Agent: "AGT00000001", Device: "DEV00000001"}, nil)
	return err
}

// end is one end's keys, as configurations of both protocols.
type end struct {
	keys *keystore.Store
	tls  *tls.Config
	tlcp *tlcp.Config
}

func openEnd(dir, name string) (*end, error) {
	keys, err := keystore.Open(filepath.Join(dir, name), passphrase)
	if err != nil {
		return nil, err
	}
	cert, err := keys.TLSCertificate(keystore.TLS)
	if err != nil {
		return nil, err
	}
	roots, err := keys.TLSRoots()
	if err != nil {
		return nil, err
	}
	pair, err := keys.TLCPPair()
	if err != nil {
		return nil, err
	}
	smRoots, err := keys.Root(keystore.TLCPRoot)
	if err != nil {
		return nil, err
	}
	return &end{keys: keys, tls: tlsConfig(cert, roots), tlcp: tlcpConfig(pair, smRoots)}, nil
}

func tlsConfig(cert tls.Certificate, roots *x509.CertPool) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, RootCAs: roots, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
		ServerName: serverAddr, NextProtos: []string{alpn}, MinVersion: tls.VersionTLS13,
	}
}

func tlcpConfig(pair *tlcp.Pair, roots *smx509.CertPool) *tlcp.Config {
	return &tlcp.Config{
		Certificates: []*tlcp.Pair{pair}, RootCAs: roots, ClientCAs: roots, ClientAuth: tlcp.RequireAndVerifyClientCert,
		ServerName: serverAddr, NextProtos: []string{alpn},
	}
}

func tempDir() (string, func(), error) {
	dir, err := os.MkdirTemp("", "bench-tunnel-")
	return dir, func() { os.RemoveAll(dir) }, err
}
