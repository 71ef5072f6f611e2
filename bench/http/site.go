//go:build linux

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/sm4gcm"
	"github.com/yumen-zt/yumen/wire"
)

const (
	hostName  = "localhost" // of the application: what every resolver knows
	gatewayID = "GW000000001"
	deviceID  = "DEV00000001"
	controlID = "CTL00000001"
	userID    = "USR00000001"
	appID     = "APP00000001"
	browser   = "BROWSER0000"
)

// layout writes Yumen's folder: keys, a site certificate, signed lists of so
// many grants, and the configuration. It returns the certificate and key files
// that every peer uses, and the session cookie of a user who may have the
// application.
func (b *bench) layout(grants int) (err error) {
	pass := []byte("bench/http: a passphrase of no secret")
	ca, err := lab.New(lab.Config{Name: "Yumen bench", Iterations: 1000})
	if err != nil {
		return err
	}
	control, err := ca.Party(filepath.Join(b.dir, "control"), pass, certid.Identity{Control: controlID}, []string{hostName})
	if err != nil {
		return err
	}
	gateway, err := ca.Party(b.at("keys"), pass, certid.Identity{Gateway: gatewayID, Device: deviceID}, []string{"gateway.localhost"})
	if err != nil {
		return err
	}
	b.roots = x509.NewCertPool()
	b.roots.AppendCertsFromPEM(ca.RootPEM(keystore.TLSRoot))
	chain, key, err := siteCertificate(ca)
	if err != nil {
		return err
	}
	l, err := newLister(control, gateway)
	if err != nil {
		return err
	}
	grantList, err := l.grants(grants)
	if err != nil {
		return err
	}
	policyList, err := l.policies()
	if err != nil {
		return err
	}
	cookieKey := make([]byte, 16)
	rand.Read(cookieKey)
	if b.cookie, err = sessionCookie(cookieKey); err != nil {
		return err
	}
	var config bytes.Buffer
	if err := yumenConfig.Execute(&config, b); err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"site.crt": chain, "site.key": key, "site.pem": slices.Concat(chain, key), "root.crt": ca.RootPEM(keystore.TLSRoot),
		"passphrase": append(pass, '\n'), "grants.ndjson": grantList, "policies.ndjson": policyList,
		"cookie.key": []byte(hex.EncodeToString(cookieKey) + "\n"), "yumen.yaml": config.Bytes(),
	} {
		err = errors.Join(err, os.WriteFile(b.at(name), content, 0o600))
	}
	return err
}

// layoutCopy gives another Yumen a folder of its own with the same content, on
// other ports, and with an access log if it is called logged.
func (b *bench) layoutCopy(name string, port, metrics int) error {
	to := b.at(name)
	if err := os.Mkdir(to, 0o700); err != nil {
		return fmt.Errorf("lay out another site: %w", err)
	}
	for _, f := range []string{"keys", "site.crt", "site.key", "root.crt", "passphrase", "grants.ndjson", "policies.ndjson", "cookie.key"} {
		if out, err := exec.Command("cp", "-a", b.at(f), to).CombinedOutput(); err != nil { // the modes, too
			return fmt.Errorf("lay out another site: %w: %s", err, out)
		}
	}
	other := *b
	other.Yumen, other.Metrics, other.AccessLog = port, metrics, name == logged
	var config bytes.Buffer
	if err := yumenConfig.Execute(&config, &other); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, "yumen.yaml"), config.Bytes(), 0o600)
}

func siteCertificate(ca *lab.CA) (chain, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		return nil, nil, err
	}
	if chain, err = ca.IssueWeb(csr, lab.Options{Hosts: []string{hostName}}); err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

// lister makes list files, as a control center does.
type lister struct {
	sender envelope.Sender
	signer jsontext.Value
	keys   *keystore.Store // of the gateway
}

func newLister(control, gateway *keystore.Store) (*lister, error) {
	key, err := control.Signer(keystore.List)
	if err != nil {
		return nil, err
	}
	chain, err := control.Chain(keystore.List)
	if err != nil {
		return nil, err
	}
	return &lister{envelope.Sender{ID: controlID, Key: key, Cert: chain[0]}, envelope.SignerExt(chain), gateway}, nil
}

// file signs the manifest and the pages of a list.
func (l *lister) file(name wire.ListName, table string, rows int, pages []wire.Message) ([]byte, error) {
	enc, err := l.keys.Chain(keystore.Enc)
	if err != nil {
		return nil, err
	}
	head := func(kind string) envelope.Header {
		return envelope.Header{MsgType: kind, Receiver: gatewayID, Ext: map[string]jsontext.Value{wire.ExtSigner: l.signer}}
	}
	m := wire.Manifest{
		List: name, Version: 1, Receiver: gatewayID, NotAfter: wire.FormatTime(time.Now().Add(time.Hour)), Rows: rows, Pages: []wire.ManifestPage{},
	}
	lines := [][]byte{nil}
	for _, p := range pages {
		body, err := wire.Encode(p)
		if err != nil {
			return nil, err
		}
		line, err := l.sender.Seal(head(table), body, enc[0])
		if err != nil {
			return nil, err
		}
		m.Pages = append(m.Pages, wire.ManifestPage{SM3: wire.PageHash(line), Bytes: len(line)})
		lines = append(lines, line)
	}
	body, err := wire.EncodeExtension(&m)
	if err != nil {
		return nil, err
	}
	if lines[0], err = l.sender.Seal(head(wire.TypeManifest), body, nil); err != nil {
		return nil, err
	}
	return append(bytes.Join(lines, []byte("\n")), '\n'), nil
}

// grants makes a list of n rows that nobody uses and the one of our user.
func (l *lister) grants(n int) ([]byte, error) {
	now := time.Now()
	row := func(user, device string, i int) wire.Grant {
		return wire.Grant{
			UserID: user, DeviceID: device, AuthenticationToken: fmt.Sprintf("tok%08d", i),
			ExpirationDate: wire.FormatTime(now.Add(time.Hour)), AppIDList: []string{appID},
		}
	}
	rows := []wire.Grant{row(userID, browser, 0)}
	for i := range n {
		rows = append(rows, row(fmt.Sprintf("USR1%07d", i), fmt.Sprintf("DEV1%07d", i), i+1))
	}
	var pages []wire.Message
	for part := range slices.Chunk(rows, 2000) {
		pages = append(pages, &wire.GrantList{
			GatewayID: gatewayID, DeviceID: deviceID, KeyType: "SM2-SM4", Timestamp: wire.FormatTime(now), Data: part,
		})
	}
	return l.file(wire.GrantsList, "T6", len(rows), pages)
}

// policies makes a list of one policy, which every request must pass.
func (l *lister) policies() ([]byte, error) {
	return l.file(wire.PoliciesList, "T8", 1, []wire.Message{&wire.PolicyList{
		GatewayID: gatewayID, DeviceID: deviceID, Timestamp: wire.FormatTime(time.Now()),
		PolicyList: []wire.Policy{{PolicyID: "POL00000001", PolicyName: "loopback", PolicyType: "ipallow", PolicyData: "127.0.0.0/8,::1"}},
	}})
}

// sessionCookie seals a session as the sign-in of package proxy/login does, so
// that no provider is needed here. Were the form to change, the first request
// would be refused and the run would end.
func sessionCookie(key []byte) (string, error) {
	aead, err := sm4gcm.New(key)
	if err != nil {
		return "", err
	}
	now := time.Now()
	session := []byte(rand.Text()[:12]) // its identifier
	session = binary.BigEndian.AppendUint32(session, uint32(now.Unix()))
	session = binary.BigEndian.AppendUint32(session, uint32(now.Add(time.Hour).Unix()))
	session = append(session, 1)                        // level
	session = binary.BigEndian.AppendUint16(session, 0) // factors
	session = append(session, userID...)                // who
	sealed := append(make([]byte, 0, 128), 1)           // version
	sealed = append(sealed, rand.Text()[:12]...)        // nonce
	additional := "yumen login v1\x00session\x00" + hostName
	sealed = aead.Seal(sealed, sealed[1:13], session, []byte(additional))
	return "__Host-yumen=" + base64.RawURLEncoding.EncodeToString(sealed), nil
}
