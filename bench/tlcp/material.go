//go:build linux

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"math/big"
	"net"
	"os"
	"time"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

const host = "gw.example.org"

// material is what both protocols shake hands with. TLS has P-256 throughout,
// pinned on both sides: certificate and key exchange.
type material struct {
	root                   *smx509.Certificate // of TLCP
	tlcpServer, tlcpClient *tlcp.Config        // E053
	tlsServer, tlsClient   *tls.Config
}

func newMaterial() (*material, error) {
	dir, err := os.MkdirTemp("", "bench-tlcp-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	set, err := lab.WriteSet(lab.SetConfig{Dir: dir, Hosts: []string{host}, ID: certid.Identity{Device: "DEV00000001"}})
	if err != nil {
		return nil, err
	}
	pair, err := set.Server.Load(time.Now())
	if err != nil {
		return nil, err
	}
	roots := smx509.NewCertPool()
	pem, err := os.ReadFile(set.Root)
	if err != nil {
		return nil, err
	}
	chain, err := keystore.ParseChain(pem)
	if err != nil {
		return nil, err
	}
	roots.AddCert(chain[0])
	suites := []uint16{tlcp.ECC_SM4_GCM_SM3}
	m := &material{
		root:       chain[0],
		tlcpServer: &tlcp.Config{Certificates: []*tlcp.Pair{pair}, CipherSuites: suites},
		tlcpClient: &tlcp.Config{RootCAs: roots, ServerName: host, CipherSuites: suites},
	}
	m.tlsServer, m.tlsClient, err = tlsConfigs()
	return m, err
}

func tlsConfigs() (server, client *tls.Config, err error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	from, to := time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	rootTmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, rootTmpl, rootTmpl, rootKey.Public(), rootKey)
	if err != nil {
		return nil, nil, err
	}
	root, err := x509.ParseCertificate(rootDER)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, root, key.Public(), rootKey)
	if err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	p256 := []tls.CurveID{tls.CurveP256}
	return &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
			MinVersion:   tls.VersionTLS13, CurvePreferences: p256, SessionTicketsDisabled: true,
		}, &tls.Config{
			RootCAs: pool, ServerName: host, MinVersion: tls.VersionTLS13, CurvePreferences: p256,
		}, nil
}

// sockets returns both ends of a TCP connection on the loopback.
func sockets() (server, client net.Conn, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		return nil, nil, err
	}
	if server, err = ln.Accept(); err != nil {
		client.Close()
	}
	return server, client, err
}

// serverMaterial is a TLCP server's configuration and its root, in base64, for
// a client in another process.
func serverMaterial() (cfg *tlcp.Config, root string, err error) {
	m, err := newMaterial()
	if err != nil {
		return nil, "", err
	}
	return m.tlcpServer, base64.StdEncoding.EncodeToString(m.root.Raw), nil
}

func poolOf(root string) (*smx509.CertPool, error) {
	der, err := base64.StdEncoding.DecodeString(root)
	if err != nil {
		return nil, err
	}
	cert, err := smx509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	pool := smx509.NewCertPool()
	pool.AddCert(cert)
	return pool, nil
}
