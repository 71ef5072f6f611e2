package gateway

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ctlID = "CTL00000001"
	gwID  = "GW000000001"
	gwDev = "DEV00000001"
	user  = "USR00000001"
	dev   = "DEV00000002"
	app1  = "APP00000001"
	app2  = "APP00000002"
	host1 = "one.test"
	host2 = "two.test"
)

var pass = []byte("a passphrase for tests")

// world is a folder with a gateway's keys, configuration and signed lists, an
// authority, and an application.
type world struct {
	t        *testing.T
	dir      string
	ca       *lab.CA
	control  *keystore.Store
	keys     *keystore.Store
	upstream *httptest.Server
	big      chan struct{} // one for each long answer that has begun
	clients  []*http.Transport
	now      func() time.Time // the gateway's clock; nil: time.Now

	logs *observer.ObservedLogs
	g    *Gateway
	addr string
	stop func() error // ends the gateway and returns what Run returned
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	// Not t.TempDir: the path of a socket is short.
	dir, err := os.MkdirTemp("", "yumen")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{t: t, dir: dir, big: make(chan struct{}, 16)}
	w.ca, err = lab.New(lab.Config{Iterations: 1000})
	must(t, err)
	w.control = w.party(w.ca, "control", certid.Identity{Control: ctlID}, "127.0.0.1")
	w.keys = w.party(w.ca, "keys", certid.Identity{Gateway: gwID, Device: gwDev}, host1, host2, "login.test", "127.0.0.1")
	w.upstream = httptest.NewServer(http.HandlerFunc(w.serve))
	t.Cleanup(func() {
		for _, c := range w.clients {
			c.CloseIdleConnections()
		}
		w.upstream.CloseClientConnections()
		w.upstream.Close()
	})
	w.write("passphrase", string(pass)+"\n", 0o600)
	w.lists(1, 1, user+" "+dev+" "+app1)
	w.config(twoApps)
	return w
}

// auditText returns every audit record that is on disk.
func (w *world) auditText() string {
	w.t.Helper()
	keys, err := keystore.Open(filepath.Join(w.dir, "keys"), pass)
	must(w.t, err)
	cfg := AuditConfig{Dir: filepath.Join(w.dir, "state", "audit")}
	store, err := auditSealing(keys, &cfg, func() *keystore.Store { return keys })
	must(w.t, err)
	var b strings.Builder
	_, err = audit.Selection{}.Copy(&b, store)
	must(w.t, err)
	return b.String()
}

// serve is the application: /big answers without end until the client goes.
func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/authorization" {
		io.WriteString(rw, r.Header.Get("Authorization"))
		return
	}
	if r.URL.Path != "/big" {
		fmt.Fprintf(rw, "%s for %s", r.Host, r.Header.Get("X-Yumen-User"))
		return
	}
	w.big <- struct{}{}
	rc := http.NewResponseController(rw)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := rw.Write(make([]byte, 1000)); err != nil || rc.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
		if r.URL.RawQuery == "short" && len(w.big) == 0 {
			return
		}
	}
}

func (w *world) party(ca *lab.CA, name string, id certid.Identity, hosts ...string) *keystore.Store {
	w.t.Helper()
	s, err := ca.Party(filepath.Join(w.dir, name), pass, id, hosts)
	must(w.t, err)
	return s
}

func (w *world) write(name, text string, mode os.FileMode) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	must(w.t, os.WriteFile(path, []byte(text), mode))
	must(w.t, os.Chmod(path, mode))
	return path
}

// twoApps and oneApp are the applications of a configuration.
const (
	oneApp = `
apps:
  - id: APP00000001
    hosts: [one.test]
    upstreams: ["UPSTREAM"]
    allow_addresses: ["127.0.0.0/8"]
`
	twoApps = oneApp + `  - id: APP00000002
    hosts: [two.test]
    upstreams: ["UPSTREAM"]
    allow_addresses: ["127.0.0.0/8"]
`
)

// config writes gateway.yaml in list-file mode with more in it.
func (w *world) config(more string) string {
	w.t.Helper()
	return w.write("gateway.yaml", "listen: ['127.0.0.1:0']\nlists: {grants: grants.list, policies: policies.list}\n"+
		"metrics: {listen: '127.0.0.1:0'}\n"+strings.ReplaceAll(more, "UPSTREAM", w.upstream.URL), 0o600)
}

// lists writes both list files. Each row is "user device app,app".
func (w *world) lists(grants, policies uint64, rows ...string) {
	w.t.Helper()
	w.write("grants.list", string(w.list(w.control, gwID, wire.GrantsList, grants, rows...)), 0o600)
	w.write("policies.list", string(w.list(w.control, gwID, wire.PoliciesList, policies)), 0o600)
}

// list makes a signed list for a gateway.
func (w *world) list(signer *keystore.Store, receiver string, name wire.ListName, version uint64, rows ...string) []byte {
	w.t.Helper()
	key, err := signer.Signer(keystore.List)
	must(w.t, err)
	chain, err := signer.Chain(keystore.List)
	must(w.t, err)
	to := w.keys
	if receiver != gwID {
		to = w.party(w.ca, receiver+time.Now().Format(".000000"), certid.Identity{Gateway: receiver, Device: gwDev})
	}
	enc, err := to.Chain(keystore.Enc)
	must(w.t, err)
	from := &envelope.Sender{ID: ctlID, Key: key, Cert: chain[0]}
	seal := func(kind string, body []byte, to *smx509.Certificate) []byte {
		line, err := from.Seal(envelope.Header{MsgType: kind, Receiver: receiver, Ext: map[string]jsontext.Value{wire.ExtSigner: envelope.SignerExt(chain)}}, body, to)
		must(w.t, err)
		return line
	}
	now := wire.FormatTime(time.Now())
	kind, body := "T8", fmt.Sprintf(`{"gatewayId":%q,"deviceId":%q,"timestamp":%q,"policyList":[]}`, receiver, gwDev, now)
	if name == wire.GrantsList {
		var data []string
		for i, r := range rows {
			if strings.HasPrefix(r, "{") { // as it is
				data = append(data, r)
				continue
			}
			f := strings.Fields(r)
			data = append(data, fmt.Sprintf(`{"userId":%q,"deviceId":%q,"authenticationToken":"tok%08d","expirationDate":"2099-01-01T00:00:00Z","appIdList":["%s"]}`,
				f[0], f[1], i, strings.ReplaceAll(f[2], ",", `","`)))
		}
		kind, body = "T6", fmt.Sprintf(`{"gatewayId":%q,"deviceId":%q,"keyType":"SM2-SM4","timestamp":%q,"data":[%s]}`, receiver, gwDev, now, strings.Join(data, ","))
	}
	page := seal(kind, []byte(body), enc[0])
	m := wire.Manifest{List: name, Version: version, NotAfter: wire.FormatTime(time.Now().Add(time.Hour)), Receiver: receiver,
		Rows: len(rows), Pages: []wire.ManifestPage{{SM3: wire.PageHash(page), Bytes: len(page)}}}
	raw, err := wire.EncodeExtension(&m)
	must(w.t, err)
	return append(bytes.Join([][]byte{seal(wire.TypeManifest, raw, nil), page}, []byte("\n")), '\n')
}

// start runs the gateway.
func (w *world) start() {
	w.t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	w.logs = logs
	g, err := New(w.t.Context(), filepath.Join(w.dir, "gateway.yaml"), Options{Logger: zap.New(core), Now: w.now})
	must(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	w.g, w.addr = g, g.Addresses()[0].String()
	ended := false
	w.stop = func() error {
		if ended {
			return nil
		}
		ended = true
		cancel()
		return <-done
	}
	w.t.Cleanup(func() {
		if err := w.stop(); err != nil {
			w.t.Errorf("run: %v", err)
		}
	})
}

// certificate issues a client certificate with these URIs.
func (w *world) certificate(uris ...string) *tls.Certificate {
	return w.certificateFor(nil, uris...)
}

// certificateFor issues a certificate with these names and URIs.
func (w *world) certificateFor(names []string, uris ...string) *tls.Certificate {
	w.t.Helper()
	dir := filepath.Join(w.dir, "ca")
	must(w.t, w.ca.Save(dir, pass))
	store, err := keystore.Open(dir, pass)
	must(w.t, err)
	signer, err := store.Signer("tls-ca")
	must(w.t, err)
	root, err := keystore.ParseChain(w.ca.RootPEM(keystore.TLSRoot))
	must(w.t, err)
	parent, err := x509.ParseCertificate(root[0].Raw)
	must(w.t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(w.t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "client"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames: names,
	}
	for _, s := range uris {
		u, err := url.Parse(s)
		must(w.t, err)
		c.URIs = append(c.URIs, u)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	must(w.t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// alice is the user's certificate on her device.
func (w *world) alice() *tls.Certificate {
	return w.certificate("urn:yumen:device:"+dev, "urn:yumen:user:"+user)
}

// client connects to the gateway whatever the host, with cert unless it is nil.
func (w *world) client(cert *tls.Certificate) *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.ca.RootPEM(keystore.TLSRoot))
	c := &tls.Config{RootCAs: pool}
	if cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	tr := &http.Transport{
		TLSClientConfig: c, ForceAttemptHTTP2: false,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, w.addr)
		},
	}
	w.clients = append(w.clients, tr)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// get returns the status and the body, or 0 and the error.
func (w *world) get(c *http.Client, target string) (int, string) {
	w.t.Helper()
	r, err := c.Get(target)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return 0, err.Error()
	}
	return r.StatusCode, string(b)
}

// want asks for target and checks status and a part of the body.
func (w *world) want(c *http.Client, target string, status int, part string) {
	w.t.Helper()
	if got, body := w.get(c, target); got != status || !strings.Contains(body, part) {
		w.t.Errorf("%s: %d %s, want %d and %q", target, got, body, status, part)
	}
}

// admin calls the socket.
func (w *world) admin(method, path string, in, out any) error {
	return adminsock.NewClient(filepath.Join(w.dir, "state", "admin.sock")).Do(w.t.Context(), method, path, in, out)
}

// raised counts the alerts of a code in the log.
func (w *world) raised(code alert.Code) (n int) {
	for _, e := range w.logs.FilterMessage("alert").All() {
		if e.ContextMap()["code"] == string(code) {
			n++
		}
	}
	return n
}

// download begins an answer without end and returns a channel of its end.
func (w *world) download(c *http.Client, target string) <-chan error {
	w.t.Helper()
	r, err := c.Get(target)
	must(w.t, err)
	if r.StatusCode != 200 {
		w.t.Fatalf("%s: status %d", target, r.StatusCode)
	}
	<-w.big
	end := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, r.Body)
		r.Body.Close()
		end <- err
	}()
	return end
}

// stranger is a certificate of an authority that nobody knows.
func stranger(t *testing.T) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	for _, s := range []string{"urn:yumen:device:" + dev, "urn:yumen:user:" + user} {
		u, err := url.Parse(s)
		must(t, err)
		c.URIs = append(c.URIs, u)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	must(t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func quiet() *zap.Logger { return zap.NewNop() }
