package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/wire"
)

// world is a running control center with its operator.
type world struct {
	t     *testing.T
	s     *Server
	cfg   Config
	admin *AdminClient
	roots *x509.CertPool
	stop  func()

	mu      sync.Mutex
	records []audit.Record
}

func (w *world) Write(r *audit.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records = append(w.records, *r)
}

// audited returns the records of object.
func (w *world) audited(object string) (out []audit.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.records {
		if r.Object == object {
			out = append(out, r)
		}
	}
	return out
}

// movedClock is a clock that a test can move.
type movedClock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *movedClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *movedClock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

const testPass = "test passphrase"

var testCA = sync.OnceValues(func() (*lab.CA, error) { return lab.New(lab.Config{Iterations: 1000}) })

func newWorld(t *testing.T, edit ...func(*Config)) *world {
	t.Helper()
	dir := t.TempDir()
	ca, err := testCA()
	if err != nil {
		t.Fatal(err)
	}
	pass := filepath.Join(dir, "passphrase")
	if err := errors.Join(ca.Save(filepath.Join(dir, "ca"), []byte(testPass)), os.WriteFile(pass, []byte(testPass+"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Party(filepath.Join(dir, "keys"), []byte(testPass), certid.Identity{Control: "CTL00000001"}, []string{"127.0.0.1", "::1", "login.test"}); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, roots: x509.NewCertPool()}
	w.roots.AppendCertsFromPEM(ca.RootPEM(keystore.TLSRoot))
	w.cfg = Config{ID: "CTL00000001", URL: "https://127.0.0.1:8443", Listen: []string{"127.0.0.1:0", "[::1]:0"}, DataDir: filepath.Join(dir, "data"),
		KeysDir: filepath.Join(dir, "keys"), CADir: filepath.Join(dir, "ca"), PassphraseFile: pass, AdminSocket: filepath.Join(dir, "admin.sock"), Audit: w}
	for _, e := range edit {
		e(&w.cfg)
	}
	w.start()
	return w
}

// start runs the control center; stop ends it.
func (w *world) start() {
	w.t.Helper()
	s, err := New(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-done:
		cancel()
		w.t.Fatal(err)
	}
	w.s, w.admin = s, NewAdminClient(w.cfg.AdminSocket)
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	w.t.Cleanup(w.stop)
}

// do is a verb that must succeed.
func (w *world) do(method, path string, in, out any) {
	w.t.Helper()
	if err := w.admin.Do(w.t.Context(), method, path, in, out); err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
}

func (w *world) id(method, path string, in any) string {
	w.t.Helper()
	var d Done
	w.do(method, path, in, &d)
	return d.ID
}

// alice makes a user with the password that the tests know.
const password = "correct horse 1"

func (w *world) user(name string) string {
	w.t.Helper()
	return w.id("POST", "/v1/users", NewUser{Name: name, Password: password})
}

func (w *world) app(name, address string) string {
	w.t.Helper()
	return w.id("POST", "/v1/apps", map[string]any{"name": name, "addresses": []string{address}})
}

func (w *world) grant(user, device string, apps ...string) string {
	w.t.Helper()
	return w.id("POST", "/v1/grants", NewGrant{User: user, Device: device, Apps: apps})
}

// enrolRequest makes keys and the request for secret.
func (w *world) enrolRequest(secret string) (*keystore.Store, *wire.EnrolRequest) {
	w.t.Helper()
	keys, err := keystore.New(keystore.Config{Dir: filepath.Join(w.t.TempDir(), "keys"), Passphrase: []byte("p"), Iterations: 1000})
	if err != nil {
		w.t.Fatal(err)
	}
	q := &wire.EnrolRequest{Secret: secret, DeviceName: "test", DeviceType: "lab", SystemType: "linux"}
	for name, dst := range map[string]*[]byte{keystore.TLS: &q.CSR.TLS, keystore.TLCPSign: &q.CSR.TLCPSign, keystore.TLCPEnc: &q.CSR.TLCPEnc, keystore.Sign: &q.CSR.Sign, keystore.Enc: &q.CSR.Enc} {
		kind := keystore.SM2
		if name == keystore.TLS {
			kind = keystore.P256
		}
		if err := keys.Generate(name, kind); err != nil {
			w.t.Fatal(err)
		}
		if *dst, err = keys.CSR(name, certid.Identity{Device: "x"}, nil); err != nil {
			w.t.Fatal(err)
		}
	}
	return keys, q
}

// anonymous returns a client that has no certificate.
func (w *world) anonymous() *http.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots}}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func (w *world) url(family int) string { return "https://" + w.s.Addrs().Links[family].String() }

// postEnrol sends q and returns the status and the answer.
func (w *world) postEnrol(hc *http.Client, q *wire.EnrolRequest) (int, *wire.EnrolReply) {
	w.t.Helper()
	raw, err := wire.EncodeExtension(q)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := hc.Post(w.url(0)+"/ztna/v1/enrol", "application/json", bytes.NewReader(raw))
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 200 {
		return resp.StatusCode, nil
	}
	r, err := wire.DecodeExtension[wire.EnrolReply](body)
	if err != nil {
		w.t.Fatal(err)
	}
	return 200, r
}

// code adds a device and returns the parsed code.
func (w *world) code(d NewDevice) (NewCode, wire.EnrolCode) {
	w.t.Helper()
	var n NewCode
	w.do("POST", "/v1/devices", d, &n)
	c, err := wire.ParseEnrolCode(n.Code)
	if err != nil {
		w.t.Fatal(err)
	}
	return n, c
}

// enrol adds a device and enrols it over its code.
func (w *world) enrol(d NewDevice) *client {
	w.t.Helper()
	_, code := w.code(d)
	keys, q := w.enrolRequest(code.Secret)
	status, r := w.postEnrol(w.anonymous(), q)
	if status != 200 {
		w.t.Fatalf("enrol: status %d", status)
	}
	for name, pem := range map[string]string{keystore.TLS: r.Certs.TLS, keystore.TLCPSign: r.Certs.TLCPSign, keystore.TLCPEnc: r.Certs.TLCPEnc, keystore.Sign: r.Certs.Sign, keystore.Enc: r.Certs.Enc,
		keystore.ControlSign: r.Control.Sign, keystore.ControlEnc: r.Control.Enc} {
		if err := keys.PutChain(name, []byte(pem)); err != nil {
			w.t.Fatalf("%s: %v", name, err)
		}
	}
	for name, pem := range map[string]string{keystore.TLSRoot: r.Roots.TLS, keystore.TLCPRoot: r.Roots.TLCP, keystore.MessageRoot: r.Roots.Message, keystore.ListRoot: r.Roots.List} {
		if err := keys.PutRoot(name, []byte(pem)); err != nil {
			w.t.Fatal(err)
		}
	}
	return w.client(d.Kind, r.ID, r.DeviceID, keys)
}
