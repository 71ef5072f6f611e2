package interop

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/diagnose"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// distid is the identity of GB/T 32918 that openssl must be told.
const distid = "distid:1234567812345678"

// folder is where openssl works.
type folder struct {
	t   *testing.T
	dir string
}

func newFolder(t *testing.T) folder {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("this test needs the program openssl 3 (run: make needs)")
	}
	return folder{t, t.TempDir()}
}

func (f folder) put(name string, data []byte) string {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		f.t.Fatal(err)
	}
	return path
}

func (f folder) get(name string) []byte {
	f.t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, name))
	if err != nil {
		f.t.Fatal(err)
	}
	return b
}

func (f folder) openssl(args ...string) (string, error) {
	cmd := exec.Command("openssl", args...)
	cmd.Dir = f.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (f folder) must(args ...string) string {
	f.t.Helper()
	out, err := f.openssl(args...)
	if err != nil {
		f.t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// verifies reports whether openssl takes sig for msg under cert.
func (f folder) verifies(cert *smx509.Certificate, msg, sig []byte) bool {
	f.t.Helper()
	f.put("signer.crt", keystore.EncodeChain(cert))
	f.put("signer.pub", []byte(f.must("x509", "-in", "signer.crt", "-noout", "-pubkey")))
	f.put("msg", msg)
	f.put("sig", sig)
	args := []string{"dgst", "-sha256", "-verify", "signer.pub", "-signature", "sig", "msg"}
	if sm2.IsSM2PublicKey(cert.PublicKey) {
		args = []string{"pkeyutl", "-verify", "-pubin", "-inkey", "signer.pub", "-rawin", "-digest", "sm3", "-pkeyopt", distid, "-in", "msg", "-sigfile", "sig"}
	}
	_, err := f.openssl(args...)
	return err == nil
}

// TestOpenSSLVerifiesEveryCertificateAndKey goes through all that a control
// center's folder holds: each certificate under its root, and a fresh signature
// of each signing key.
func TestOpenSSLVerifiesEveryCertificateAndKey(t *testing.T) {
	f := newFolder(t)
	ca, err := lab.New(lab.Config{Iterations: 1})
	if err != nil {
		t.Fatal(err)
	}
	store, err := ca.Party(f.dir+"/keys", []byte("x"), certid.Identity{Control: "CC000000001"}, []string{"control.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	signSet, encSet, err := webSet(ca)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, root string
		signs      bool
	}{
		{keystore.TLS, keystore.TLSRoot, true},
		{keystore.TLCPSign, keystore.TLCPRoot, true},
		{keystore.TLCPEnc, keystore.TLCPRoot, false},
		{keystore.Sign, keystore.MessageRoot, true},
		{keystore.Enc, keystore.MessageRoot, false},
		{keystore.List, keystore.ListRoot, true},
	} {
		chain, err := store.Chain(c.name)
		if err != nil {
			t.Fatal(err)
		}
		f.put("root.crt", ca.RootPEM(c.root))
		f.put("leaf.crt", keystore.EncodeChain(chain...))
		verify := []string{"verify", "-x509_strict", "-CAfile", "root.crt"}
		if c.name != keystore.TLS {
			verify = append(verify, "-vfyopt", distid)
		}
		f.must(append(verify, "leaf.crt")...)
		// The root signed itself; openssl verify passes no identity on to it.
		rootCert, err := smx509.ParseCertificatePEM(ca.RootPEM(c.root))
		if err != nil {
			t.Fatal(err)
		}
		if !f.verifies(rootCert, rootCert.RawTBSCertificate, rootCert.Signature) {
			t.Errorf("openssl does not verify the signature of the %s root on itself", c.root)
		}
		f.put("other.crt", ca.RootPEM(keystore.ListRoot))
		if c.root != keystore.ListRoot {
			if out, err := f.openssl("verify", "-CAfile", "other.crt", "-vfyopt", distid, "leaf.crt"); err == nil {
				t.Errorf("%s verifies under another root: %s", c.name, out)
			}
		}
		if !c.signs {
			continue
		}
		key, err := store.Signer(c.name)
		if err != nil {
			t.Fatal(err)
		}
		msg := []byte("signed by " + c.name)
		digest, opts := msg, crypto.SignerOpts(sm2.DefaultSM2SignerOpts)
		if c.name == keystore.TLS {
			h := crypto.SHA256.New()
			h.Write(msg)
			digest, opts = h.Sum(nil), crypto.SHA256
		}
		sig, err := key.Sign(rand.Reader, digest, opts)
		if err != nil {
			t.Fatal(err)
		}
		if !f.verifies(chain[0], msg, sig) {
			t.Errorf("%s: openssl does not verify its signature", c.name)
		}
		if f.verifies(chain[0], append(msg, '.'), sig) {
			t.Errorf("%s: openssl verifies another message", c.name)
		}
	}
	f.put("root.crt", ca.RootPEM(keystore.TLCPRoot))
	for _, leaf := range [][]byte{signSet, encSet} {
		f.put("leaf.crt", leaf)
		f.must("verify", "-x509_strict", "-verify_hostname", "gw.example.org", "-purpose", "any", "-CAfile", "root.crt", "-vfyopt", distid, "leaf.crt")
	}
}

// webSet makes the two certificates of a TLCP web server.
func webSet(ca *lab.CA) (sign, enc []byte, err error) {
	var csrs [2][]byte
	for i := range csrs {
		key, err := sm2.GenerateKey(rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		if csrs[i], err = smx509.CreateCertificateRequest(rand.Reader, &smx509.CertificateRequest{}, key); err != nil {
			return nil, nil, err
		}
	}
	return ca.IssueTLCPWeb(csrs[0], csrs[1], lab.Options{Hosts: []string{"gw.example.org"}})
}

// TestOpenSSLVerifiesHandshakeSignatures takes the two signatures out of
// recorded handshakes and has openssl verify them over what the standard says
// is signed.
func TestOpenSSLVerifiesHandshakeSignatures(t *testing.T) {
	f := newFolder(t)
	s := newSite(t)
	for _, suite := range []uint16{tlcp.ECC_SM4_GCM_SM3, tlcp.ECC_SM4_CBC_SM3, tlcp.ECDHE_SM4_GCM_SM3, tlcp.ECDHE_SM4_CBC_SM3} {
		t.Run(tlcp.CipherSuiteName(suite), func(t *testing.T) {
			f := folder{t, f.dir}
			messages := handshakeMessages(t, conversation(t,
				&tlcp.Config{Certificates: []*tlcp.Pair{s.server.pair}, CipherSuites: []uint16{suite}, ClientAuth: tlcp.RequireAndVerifyClientCert, ClientCAs: s.roots},
				&tlcp.Config{Certificates: []*tlcp.Pair{s.client.pair}, CipherSuites: []uint16{suite}, RootCAs: s.roots, ServerName: "gw.example.org"}))
			of := func(kind byte) int {
				return slices.IndexFunc(messages, func(m []byte) bool { return m[0] == kind })
			}
			hello, reply, keys, proof := messages[of(1)], messages[of(2)], messages[of(12)], messages[of(15)]
			randoms := slices.Concat(hello[6:38], reply[6:38])
			body := keys[4:]
			var signed []byte
			if suite == tlcp.ECC_SM4_GCM_SM3 || suite == tlcp.ECC_SM4_CBC_SM3 {
				enc := s.server.pair.EncLeaf().Raw
				signed = slices.Concat(randoms, []byte{byte(len(enc) >> 16), byte(len(enc) >> 8), byte(len(enc))}, enc)
			} else {
				n := 4 + int(body[3]) // curve type, curve, length, point
				signed = slices.Concat(randoms, body[:n])
				body = body[n:]
			}
			if !f.verifies(s.server.pair.SignLeaf(), signed, body[2:]) {
				t.Error("openssl does not verify the server key exchange")
			}
			if f.verifies(s.server.pair.EncLeaf(), signed, body[2:]) {
				t.Error("openssl verifies the server key exchange under the encryption certificate")
			}
			digest := sm3.Sum(bytes.Join(messages[:of(15)], nil))
			if !f.verifies(s.client.pair.SignLeaf(), digest[:], proof[6:]) {
				t.Error("openssl does not verify the client's certificate verify")
			}
		})
	}
}

// TestCertificatesMadeByOpenSSL: an authority, an intermediate and two leaves
// that openssl made serve a TLCP handshake of ours, its signatures verify here,
// and yumen cert check finds nothing wrong with them.
func TestCertificatesMadeByOpenSSL(t *testing.T) {
	f := newFolder(t)
	key := func(name string) {
		f.must("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:SM2", "-pkeyopt", "ec_param_enc:named_curve", "-out", name+".key")
	}
	issue := func(name, by, ext string) {
		key(name)
		f.must("req", "-new", "-key", name+".key", "-sm3", "-sigopt", distid, "-subj", "/O=openssl/CN=gw.example.org", "-out", name+".csr")
		f.put(name+".ext", []byte(ext))
		f.must("x509", "-req", "-in", name+".csr", "-CA", by+".crt", "-CAkey", by+".key", "-CAcreateserial", "-days", "60",
			"-sm3", "-sigopt", distid, "-vfyopt", distid, "-extfile", name+".ext", "-out", name+".crt")
	}
	key("root")
	f.must("req", "-x509", "-new", "-key", "root.key", "-sm3", "-sigopt", distid, "-subj", "/O=openssl/CN=root", "-days", "90",
		"-addext", "keyUsage=critical,keyCertSign,cRLSign", "-out", "root.crt")
	key("sub")
	f.must("req", "-new", "-key", "sub.key", "-sm3", "-sigopt", distid, "-subj", "/O=openssl/CN=sub", "-out", "sub.csr")
	f.put("sub.ext", []byte("basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"))
	f.must("x509", "-req", "-in", "sub.csr", "-CA", "root.crt", "-CAkey", "root.key", "-CAcreateserial", "-days", "80", "-sm3", "-sigopt", distid, "-vfyopt", distid, "-extfile", "sub.ext", "-out", "sub.crt")
	const names = "subjectAltName=DNS:gw.example.org,IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n"
	issue("sign", "sub", "keyUsage=critical,digitalSignature\n"+names)
	issue("enc", "sub", "keyUsage=critical,keyEncipherment,dataEncipherment,keyAgreement\n"+names)
	at := func(name string) string { return filepath.Join(f.dir, name) }

	r := diagnose.CheckFiles([]string{at("enc.crt"), at("sign.key"), at("sub.crt"), at("enc.key"), at("sign.crt")},
		diagnose.FilesOptions{CA: at("root.crt"), Names: []string{"gw.example.org", "127.0.0.1"}})
	if r.Err() != nil || r.Findings.Count(diagnose.Warning) > 0 || r.Keys != 2 {
		t.Errorf("cert check: %v, %d keys, %+v", r.Err(), r.Keys, r.Findings)
	}
	r = diagnose.CheckFiles([]string{at("sign.crt"), at("enc.crt")}, diagnose.FilesOptions{CA: at("root.crt")})
	if !r.Findings.Has("issuer-missing") {
		t.Errorf("cert check without the intermediate: %+v", r.Findings)
	}

	sub := f.get("sub.crt")
	f.put("sign.chain", append(f.get("sign.crt"), sub...))
	f.put("enc.chain", append(f.get("enc.crt"), sub...))
	pair, err := tlcp.PairFiles{SignCert: at("sign.chain"), SignKey: at("sign.key"), EncCert: at("enc.chain"), EncKey: at("enc.key")}.Load(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	roots := smx509.NewCertPool()
	if !roots.AppendCertsFromPEM(f.get("root.crt")) {
		t.Fatal("the root was not taken")
	}
	for _, suite := range []uint16{tlcp.ECC_SM4_GCM_SM3, tlcp.ECDHE_SM4_GCM_SM3} {
		a, b := transports(t, "tcp4")
		server := tlcp.Server(a, &tlcp.Config{Certificates: []*tlcp.Pair{pair}, CipherSuites: []uint16{suite}, ClientAuth: tlcp.RequireAndVerifyClientCert, ClientCAs: roots, LaxUsage: true})
		client := tlcp.Client(b, &tlcp.Config{Certificates: []*tlcp.Pair{pair}, RootCAs: roots, ServerName: "gw.example.org", CipherSuites: []uint16{suite}})
		echo(t, server, client)
	}

	// A signature by openssl.
	msg := []byte("signed by openssl")
	f.put("msg", msg)
	f.must("pkeyutl", "-sign", "-inkey", "sign.key", "-rawin", "-digest", "sm3", "-pkeyopt", distid, "-in", "msg", "-out", "sig")
	pub := pair.SignLeaf().PublicKey.(*ecdsa.PublicKey)
	if !sm2.VerifyASN1WithSM2(pub, nil, msg, f.get("sig")) {
		t.Error("a signature by openssl does not verify")
	}
	if sm2.VerifyASN1WithSM2(pub, nil, append(msg, '.'), f.get("sig")) {
		t.Error("a signature by openssl verifies for another message")
	}
	// What openssl encrypts to the encryption certificate, we decrypt, and the other way.
	f.put("enc.pub", []byte(f.must("x509", "-in", "enc.crt", "-noout", "-pubkey")))
	f.put("plain", []byte("forty-eight bytes of a premaster secret, or less"))
	f.must("pkeyutl", "-encrypt", "-pubin", "-inkey", "enc.pub", "-pkeyopt", "digest:sm3", "-in", "plain", "-out", "sealed")
	block, _ := pem.Decode(f.get("enc.key"))
	encKey, err := smx509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	decrypter, ok := encKey.(*sm2.PrivateKey)
	if !ok {
		t.Fatalf("openssl's key is read as %T", encKey)
	}
	if got, err := decrypter.Decrypt(nil, f.get("sealed"), sm2.ASN1DecrypterOpts); err != nil || !bytes.Equal(got, f.get("plain")) {
		t.Errorf("decrypt what openssl encrypted: %q, %v", got, err)
	}
	sealed, err := sm2.EncryptASN1(rand.Reader, &decrypter.PublicKey, f.get("plain"))
	if err != nil {
		t.Fatal(err)
	}
	f.put("ours", sealed)
	f.must("pkeyutl", "-decrypt", "-inkey", "enc.key", "-pkeyopt", "digest:sm3", "-in", "ours", "-out", "back")
	if !bytes.Equal(f.get("back"), f.get("plain")) {
		t.Error("openssl decrypts something else")
	}
}
