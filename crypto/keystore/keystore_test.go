package keystore

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
)

var pass = []byte("correct horse battery")

func newStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := New(Config{Dir: dir, Passphrase: pass, Iterations: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustGenerate(t testing.TB, s *Store) {
	t.Helper()
	if err := errors.Join(s.Generate(TLS, P256), s.Generate(Sign, SM2), s.Generate(Enc, SM2)); err != nil {
		t.Fatal(err)
	}
}

// openssl runs the program that Debian's package of that name installs.
func openssl(t testing.TB, stdin []byte, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("this test needs the program openssl 3 (run: apt-get install openssl)")
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestKeysSurviveReopening(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	mustGenerate(t, newStore(t, dir))
	s := newStore(t, dir)

	tlsKey, err := s.Signer(TLS)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("message"))
	sig, err := tlsKey.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil || !ecdsa.VerifyASN1(tlsKey.Public().(*ecdsa.PublicKey), sum[:], sig) {
		t.Errorf("P-256 signature: %v", err)
	}
	sign, err := s.Signer(Sign)
	if err != nil {
		t.Fatal(err)
	}
	sig, err = sign.Sign(rand.Reader, []byte("message"), sm2.NewSM2SignerOption(true, nil))
	if err != nil || !sm2.VerifyASN1WithSM2(sign.Public().(*ecdsa.PublicKey), nil, []byte("message"), sig) {
		t.Errorf("SM2 signature: %v", err)
	}
	enc, err := s.Signer(Enc)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := sm2.EncryptASN1(rand.Reader, enc.Public().(*ecdsa.PublicKey), []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	dec, err := s.Decrypter(Enc)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := dec.Decrypt(rand.Reader, sealed, sm2.ASN1DecrypterOpts); err != nil || string(got) != "secret" {
		t.Errorf("SM2 decryption: got %q, %v", got, err)
	}
	if _, err := s.Decrypter(TLS); err == nil {
		t.Error("a P-256 key was given for decryption")
	}
	if err := s.Generate(TLS, P256); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Generate: got %v, want fs.ErrExist", err)
	}
	if _, err := s.Signer("list"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent key: got %v, want fs.ErrNotExist", err)
	}
}

// TestGCR002_M26_KeysAreEncryptedAtRest looks for the private numbers in every
// file of the folder.
func TestGCR002_M26_KeysAreEncryptedAtRest(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	s := newStore(t, dir)
	mustGenerate(t, s)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatalf("folder: %d files, %v; want 3", len(entries), err)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("folder mode: got %v, %v; want 0700", fi.Mode(), err)
	}
	for _, name := range []string{TLS, Sign, Enc} {
		key, err := s.Signer(name)
		if err != nil {
			t.Fatal(err)
		}
		var d []byte
		switch k := key.(type) {
		case *ecdsa.PrivateKey:
			d, err = k.Bytes()
		case *sm2.PrivateKey:
			d = privateNumber(t, k)
		}
		if err != nil || len(d) != 32 {
			t.Fatalf("private number of %s: %d bytes, %v", name, len(d), err)
		}
		for _, e := range entries {
			raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			if fi, err := e.Info(); err != nil || fi.Mode().Perm() != 0o600 {
				t.Errorf("%s: mode %v, %v; want 0600", e.Name(), fi.Mode(), err)
			}
			der := decodeBase64(t, raw)
			if bytes.Contains(der, d) || bytes.Contains(raw, pass) {
				t.Errorf("%s shows the private key of %s or the passphrase", e.Name(), name)
			}
			if !bytes.HasPrefix(raw, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")) {
				t.Errorf("%s: begins %.40q", e.Name(), raw)
			}
		}
	}
	other, err := New(Config{Dir: dir, Passphrase: []byte("wrong")})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{TLS, Sign} {
		if _, err := other.Signer(name); err == nil || !strings.Contains(err.Error(), "passphrase is wrong") {
			t.Errorf("%s under another passphrase: %v", name, err)
		}
	}
}

// TestOpenSSLReadsKeys proves the file format by a program that we did not
// write. OpenSSL 3.0 has no PBKDF2 with HMAC-SM3, so that of the SM2 file it
// reads the structure.
func TestOpenSSLReadsKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	s := newStore(t, dir)
	mustGenerate(t, s)
	out, err := openssl(t, nil, "pkey", "-in", filepath.Join(dir, "tls.key"), "-passin", "pass:"+string(pass), "-pubout", "-outform", "PEM")
	if err != nil {
		t.Fatalf("openssl pkey: %v\n%s", err, out)
	}
	key, err := s.Signer(TLS)
	if err != nil {
		t.Fatal(err)
	}
	der, err := smx509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if got := decodeBase64(t, []byte(out)); !bytes.Equal(got, der) {
		t.Errorf("openssl sees another public key: %s", out)
	}
	out, err = openssl(t, nil, "pkey", "-in", filepath.Join(dir, "tls.key"), "-passin", "pass:wrong", "-noout")
	if err == nil {
		t.Errorf("openssl opens the key with another passphrase: %s", out)
	}
	out, err = openssl(t, nil, "asn1parse", "-in", filepath.Join(dir, "sign.key"))
	if err != nil {
		t.Fatalf("openssl asn1parse: %v\n%s", err, out)
	}
	for _, want := range []string{"PBES2", "PBKDF2", "sm4-cbc"} {
		if !strings.Contains(out, want) {
			t.Errorf("SM2 key file: no %s in\n%s", want, out)
		}
	}
	for _, want := range []string{"1.2.156.10197.1.401.2", "hmacWithSM3"} {
		if strings.Contains(out, want) {
			return
		}
	}
	t.Errorf("SM2 key file: no HMAC-SM3 in\n%s", out)
}

// TestS40_FilesOpenToOthersAreRefused covers modes, links and exchanged files.
func TestS40_FilesOpenToOthersAreRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(dir string) error
		want   string // in the error: the remedy
	}{
		{"group can read the key", chmod("tls.key", 0o640), "chmod 600 "},
		{"all can read the key", chmod("tls.key", 0o604), "chmod 600 "},
		{"others can write the chain", chmod("tls.crt", 0o646), "chmod go-w "},
		{"group can write the root", chmod("tls-root.crt", 0o664), "chmod go-w "},
		{"folder open to the group", chmod("", 0o750), "chmod 700 "},
		{"key is a link", link("tls.key"), "symbolic link"},
		{"chain is a link", link("tls.crt"), "symbolic link"},
		{"root is a link", link("tls-root.crt"), "symbolic link"},
		{"key is a folder", func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "tls.key")), os.Mkdir(filepath.Join(dir, "tls.key"), 0o700))
		}, "not a regular file"},
		{"key is not encrypted", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "tls.key"), []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), 0o600)
		}, "unencrypted key is not accepted"},
		{"key is huge", func(dir string) error {
			return os.Truncate(filepath.Join(dir, "tls.key"), maxFile+1)
		}, "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "keys")
			if err := os.CopyFS(dir, os.DirFS(goodFolder(t))); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.Chmod(dir, 0o700), os.Chmod(filepath.Join(dir, "tls.key"), 0o600)); err != nil {
				t.Fatal(err)
			}
			if err := load(dir); err != nil {
				t.Fatalf("before the damage: %v", err)
			}
			if err := c.damage(dir); err != nil {
				t.Fatal(err)
			}
			err := load(dir)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}

// load reads all that a TLS server reads.
func load(dir string) error {
	s, err := New(Config{Dir: dir, Passphrase: pass})
	if err != nil {
		return err
	}
	_, err1 := s.TLSCertificate(TLS)
	_, err2 := s.TLSRoots()
	return errors.Join(err1, err2)
}

func chmod(name string, mode fs.FileMode) func(string) error {
	return func(dir string) error { return os.Chmod(filepath.Join(dir, name), mode) }
}

// link moves a file away and puts a symbolic link in its place.
func link(name string) func(string) error {
	return func(dir string) error {
		path := filepath.Join(dir, name)
		return errors.Join(os.Rename(path, path+".real"), os.Symlink(path+".real", path))
	}
}

var good struct {
	once sync.Once
	dir  string
	err  error
}

// goodFolder returns a folder with a tls key, its self-signed certificate and
// that as the root.
func goodFolder(t testing.TB) string {
	t.Helper()
	good.once.Do(func() {
		dir, err := os.MkdirTemp("", "keystore")
		if err != nil {
			good.err = err
			return
		}
		good.dir = filepath.Join(dir, "keys")
		s, err := New(Config{Dir: good.dir, Passphrase: pass, Iterations: 1})
		if err == nil {
			err = s.Generate(TLS, P256)
		}
		if err == nil {
			pem := selfSigned(t, s, TLS)
			err = errors.Join(s.PutChain(TLS, pem), s.PutRoot(TLSRoot, pem))
		}
		good.err = err
	})
	if good.err != nil {
		t.Fatal(good.err)
	}
	return good.dir
}

func TestMain(m *testing.M) {
	code := m.Run()
	if good.dir != "" {
		_ = os.RemoveAll(filepath.Dir(good.dir))
	}
	os.Exit(code)
}

func TestPassphraseFile(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name, content string
		mode          fs.FileMode
		want, fault   string
	}{
		{"plain", "secret", 0o600, "secret", ""},
		{"newline", "secret \n", 0o400, "secret ", ""},
		{"crlf", "secret\r\n", 0o600, "secret", ""},
		{"empty", "\n", 0o600, "", "empty"},
		{"two lines", "a\nb\n", 0o600, "", "more than one line"},
		{"readable", "secret", 0o644, "", "chmod 600"},
		{"long", strings.Repeat("x", maxPassphrase+1), 0o600, "", "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(c.name, " ", "_"))
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			got, err := ReadPassphrase(path)
			if string(got) != c.want || (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
				t.Errorf("got %q, %v; want %q, fault %q", got, err, c.want, c.fault)
			}
		})
	}
	if _, err := ReadPassphrase(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: got %v, want fs.ErrNotExist", err)
	}
}

func TestNamesCannotLeaveTheFolder(t *testing.T) {
	s := newStore(t, filepath.Join(t.TempDir(), "keys"))
	for _, name := range []string{"", ".", "..", "../tls", "a/b", ".tls", "TLS", "tls-root", "a\x00b", strings.Repeat("a", 65)} {
		if err := s.Generate(name, P256); err == nil {
			t.Errorf("Generate(%q) was taken", name)
		}
		if _, err := s.Chain(name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Chain(%q): got %v", name, err)
		}
	}
	if _, err := os.Stat(s.Dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused name made the folder: %v", err)
	}
}

func TestChainMustFitTheKey(t *testing.T) {
	s := newStore(t, filepath.Join(t.TempDir(), "keys"))
	mustGenerate(t, s)
	if err := s.PutChain(TLS, selfSigned(t, s, Sign)); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("certificate of another key: %v", err)
	}
	if err := s.PutChain("control-sign", selfSigned(t, s, Sign)); err != nil {
		t.Errorf("certificate without a key here: %v", err)
	}
	for _, bad := range []string{"", "junk", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if err := s.PutChain(TLS, []byte(bad)); err == nil {
			t.Errorf("PutChain(%q) was taken", bad)
		}
	}
	if err := s.PutRoot(TLSRoot, certFor(t, s, TLS, false)); err == nil || !strings.Contains(err.Error(), "not an authority") {
		t.Errorf("a leaf as root: %v", err)
	}
}

func TestPromoteReplacesKeyAndChain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	s := newStore(t, dir)
	for _, name := range []string{TLS, "tls.new"} {
		if err := s.Generate(name, P256); err != nil {
			t.Fatal(err)
		}
		if err := s.PutChain(name, selfSigned(t, s, name)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := s.TLSCertificate("tls.new")
	if err != nil {
		t.Fatal(err)
	}
	// As after a crash between the two moves: the key is at its place, the
	// chain is not.
	if err := os.Rename(filepath.Join(dir, "tls.new.key"), filepath.Join(dir, "tls.key")); err != nil {
		t.Fatal(err)
	}
	s = newStore(t, dir)
	if _, err := s.TLSCertificate(TLS); err == nil {
		t.Fatal("the new key was taken with the old chain")
	}
	if err := s.Promote("tls.new", TLS); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Store{s, newStore(t, dir)} {
		got, err := s.TLSCertificate(TLS)
		if err != nil || !bytes.Equal(got.Certificate[0], want.Certificate[0]) {
			t.Errorf("after Promote: %v, the same certificate: %v", err, err == nil)
		}
	}
	if s.Has("tls.new") {
		t.Error("the new name is still there")
	}
	if err := s.Promote("tls.new", TLS); err == nil {
		t.Error("Promote of nothing succeeded")
	}
}

func TestCSRCarriesIdentityAndHosts(t *testing.T) {
	s := newStore(t, filepath.Join(t.TempDir(), "keys"))
	mustGenerate(t, s)
	id := certid.Identity{Gateway: "GW000000001", Device: "DEV00000001"}
	for _, name := range []string{TLS, Sign} {
		der, err := s.CSR(name, id, []string{"gw.example.org", "10.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		req, err := smx509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		got, err := certid.FromURIs(req.URIs)
		if err != nil || got != id || len(req.DNSNames) != 1 || len(req.IPAddresses) != 1 {
			t.Errorf("%s: got %+v, %v, %q, %v", name, got, err, req.DNSNames, req.IPAddresses)
		}
		if err := req.CheckSignature(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		args := []string{"req", "-inform", "DER", "-verify", "-noout"}
		if name == Sign {
			args = append(args, "-vfyopt", "distid:1234567812345678")
		}
		if out, err := openssl(t, der, args...); err != nil || !strings.Contains(out, "verify OK") {
			t.Errorf("%s: openssl req -verify: %v\n%s", name, err, out)
		}
	}
	if _, err := s.CSR(TLS, certid.Identity{Gateway: "too long for it"}, nil); err == nil {
		t.Error("a bad identity was taken")
	}
	if _, err := s.CSR(TLS, certid.Identity{}, nil); err != nil {
		t.Errorf("without identity, before enrolment: %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	mustGenerate(t, newStore(t, dir))
	s := newStore(t, dir)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			name := []string{TLS, Sign, Enc}[i%3]
			if _, err := s.Signer(name); err != nil {
				t.Error(err)
			}
			if err := s.Generate("one", SM2); err != nil && !errors.Is(err, fs.ErrExist) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestDefaultIterationsAreStrong(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "keys"), pass)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Generate(TLS, P256); err != nil {
		t.Fatal(err)
	}
	out, err := openssl(t, nil, "asn1parse", "-in", filepath.Join(s.Dir(), "tls.key"))
	if err != nil || !strings.Contains(out, "INTEGER           :0927C0") { // 600,000
		t.Errorf("iterations: %v\n%s", err, out)
	}
}

func TestPreloadDecryptsEachKeyOnceAndTellsFaults(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	s, err := New(Config{Dir: dir, Passphrase: []byte("right"), Iterations: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for name, kind := range map[string]Kind{"tls": P256, "sign": SM2, "enc": SM2} {
		if err := s.Generate(name, kind); err != nil {
			t.Fatal(err)
		}
	}
	again, err := Open(dir, []byte("right"))
	if err != nil {
		t.Fatal(err)
	}
	before, err := again.Signer("tls")
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Preload("tls", "sign", "enc", "absent", "../x"); err != nil {
		t.Fatal(err)
	}
	if after, _ := again.Signer("tls"); after != before {
		t.Error("a key that was loaded was replaced")
	}
	if len(again.keys) != 3 {
		t.Errorf("%d keys are loaded, want 3", len(again.keys))
	}
	wrong, err := Open(dir, []byte("wrong"))
	if err != nil {
		t.Fatal(err)
	}
	if err := wrong.Preload("tls", "sign", "enc"); err == nil || !strings.Contains(err.Error(), "passphrase is wrong") {
		t.Errorf("wrong passphrase: %v", err)
	}
}
