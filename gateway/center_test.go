package gateway

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/wire"
)

// center is a small control center: it proves that it is there, and has lists.
type center struct {
	w   *world
	srv *httptest.Server
	in  *envelope.Receiver
	out *envelope.Sender
	enc *smx509.Certificate

	mu       sync.Mutex
	versions map[wire.ListName]uint64 // guarded by mu
	lists    map[wire.ListName][]byte // guarded by mu
	got      []*envelope.Message      // guarded by mu
}

// center starts a control center at a real address and writes a configuration
// that uses it. The parties' keys must have been made with its host, 127.0.0.1.
func (w *world) center(more string) *center {
	w.t.Helper()
	dec, err := w.control.Decrypter(keystore.Enc)
	must(w.t, err)
	sign, err := w.keys.Chain(keystore.Sign)
	must(w.t, err)
	enc, err := w.keys.Chain(keystore.Enc)
	must(w.t, err)
	in, err := envelope.NewReceiver(envelope.Config{ID: ctlID, Decrypter: dec, RequireSealed: true, Signers: envelope.Pinned(sign[0])})
	must(w.t, err)
	key, err := w.control.Signer(keystore.Sign)
	must(w.t, err)
	own, err := w.control.Chain(keystore.Sign)
	must(w.t, err)
	c := &center{w: w, in: in, out: &envelope.Sender{ID: ctlID, Key: key, Cert: own[0]}, enc: enc[0],
		versions: map[wire.ListName]uint64{}, lists: map[wire.ListName][]byte{}}
	cert, err := w.control.TLSCertificate(keystore.TLS)
	must(w.t, err)
	roots, err := w.control.TLSRoots()
	must(w.t, err)
	c.srv = httptest.NewUnstartedServer(c)
	c.srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots}
	c.srv.StartTLS()
	w.t.Cleanup(c.stop)
	w.write("gateway.yaml", "listen: ['127.0.0.1:0']\ncrypto: {profile: intl}\ncontrol: {url: '"+c.srv.URL+"'}\nmetrics: {listen: '127.0.0.1:0'}\n"+
		strings.ReplaceAll(more, "UPSTREAM", w.upstream.URL), 0o600)
	return c
}

func (c *center) stop() {
	c.srv.CloseClientConnections()
	c.srv.Close()
}

func (c *center) set(name wire.ListName, version uint64, raw []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.versions[name], c.lists[name] = version, raw
}

// ServeHTTP answers messages by T5, and lists; it has no push stream.
func (c *center) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if name, ok := strings.CutPrefix(r.URL.Path, "/ztna/v1/gateway/lists/"); ok {
		etag := fmt.Sprintf(`"%s-%d"`, name, c.versions[wire.ListName(name)])
		if r.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("ETag", etag)
		w.Write(c.lists[wire.ListName(name)])
		return
	}
	if r.Method != http.MethodPost {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	m, err := c.in.Open(raw)
	if err != nil {
		c.w.t.Errorf("center: %v", err)
		return
	}
	c.got = append(c.got, m)
	ext := map[string]jsontext.Value{}
	if n := m.Header.Ext[wire.ExtNonce]; n != nil {
		text := func(v uint64) jsontext.Value { return jsontext.Value(fmt.Sprintf("%q", fmt.Sprint(v))) }
		ext = map[string]jsontext.Value{wire.ExtNonce: n, wire.ExtListVersion: text(c.versions[wire.GrantsList]), wire.ExtPolicyVersion: text(c.versions[wire.PoliciesList])}
	}
	body, err := wire.Encode(&wire.Reply{Code: wire.Success, Result: "YM-000 OK: allowed"})
	must(c.w.t, err)
	env, err := c.out.Seal(envelope.Header{MsgType: "T5", Receiver: gwID, Ext: ext}, body, nil)
	must(c.w.t, err)
	w.Write(env)
}

// last returns the newest message of a type.
func (c *center) last(kind string) *envelope.Message {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.got) - 1; i >= 0; i-- {
		if c.got[i].Header.MsgType == kind {
			return c.got[i]
		}
	}
	return nil
}

// await waits until ok.
func await(t testing.TB, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			t.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(start)
}

// pages is list for many rows of Table 7, as JSON, in pages.
func (w *world) pages(version uint64, rows []string) []byte {
	w.t.Helper()
	key, err := w.control.Signer(keystore.List)
	must(w.t, err)
	chain, err := w.control.Chain(keystore.List)
	must(w.t, err)
	enc, err := w.keys.Chain(keystore.Enc)
	must(w.t, err)
	from := &envelope.Sender{ID: ctlID, Key: key, Cert: chain[0]}
	seal := func(kind string, body []byte, to *smx509.Certificate) []byte {
		line, err := from.Seal(envelope.Header{MsgType: kind, Receiver: gwID, Ext: map[string]jsontext.Value{wire.ExtSigner: envelope.SignerExt(chain)}}, body, to)
		must(w.t, err)
		return line
	}
	m := wire.Manifest{List: wire.GrantsList, Version: version, NotAfter: wire.FormatTime(time.Now().Add(time.Hour)), Receiver: gwID, Rows: len(rows)}
	var lines []byte
	now := wire.FormatTime(time.Now())
	for len(rows) > 0 {
		n := min(len(rows), 2500)
		page := seal("T6", fmt.Appendf(nil, `{"gatewayId":%q,"deviceId":%q,"keyType":"SM2-SM4","timestamp":%q,"data":[%s]}`, gwID, gwDev, now, strings.Join(rows[:n], ",")), enc[0])
		rows = rows[n:]
		m.Pages = append(m.Pages, wire.ManifestPage{SM3: wire.PageHash(page), Bytes: len(page)})
		lines = append(append(lines, page...), '\n')
	}
	raw, err := wire.EncodeExtension(&m)
	must(w.t, err)
	return append(append(seal(wire.TypeManifest, raw, nil), '\n'), lines...)
}

func readExt[T any](t *testing.T, m *envelope.Message, name string) (v T) {
	t.Helper()
	if m == nil {
		t.Fatalf("no message with %s", name)
	}
	must(t, json.Unmarshal(m.Header.Ext[name], &v))
	return v
}
