package ctlclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

const (
	ctlID = "CTL00000001"
	gwID  = "GW000000001"
	gwDev = "DEV00000001"
	agtID = "AGT00000001"
	agDev = "DEV00000002"
)

var pass = []byte("a passphrase for tests")

// world is one site: its authority, a control center's keys and a gateway's.
type world struct {
	t       testing.TB
	ca      *lab.CA
	control *keystore.Store
	gateway *keystore.Store
	agent   *keystore.Store
}

func newWorld(t testing.TB) *world {
	t.Helper()
	ca, err := lab.New(lab.Config{Iterations: 1000})
	must(t, err)
	w := &world{t: t, ca: ca}
	w.control = w.party("control", certid.Identity{Control: ctlID}, "control.test", "127.0.0.1")
	w.gateway = w.party("gateway", certid.Identity{Gateway: gwID, Device: gwDev})
	w.agent = w.party("agent", certid.Identity{Agent: agtID, Device: agDev})
	return w
}

func (w *world) party(dir string, id certid.Identity, hosts ...string) *keystore.Store {
	w.t.Helper()
	s, err := w.ca.Party(filepath.Join(w.t.TempDir(), dir), pass, id, hosts)
	must(w.t, err)
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func leaf(t testing.TB, s *keystore.Store, name string) *smx509.Certificate {
	t.Helper()
	c, err := s.Chain(name)
	must(t, err)
	return c[0]
}

// signer makes envelopes with the key name of s.
func signer(t testing.TB, s *keystore.Store, name, id string) *envelope.Sender {
	t.Helper()
	key, err := s.Signer(name)
	must(t, err)
	return &envelope.Sender{ID: id, Key: key, Cert: leaf(t, s, name)}
}

func (w *world) verifier(change func(*VerifierConfig)) *Verifier {
	w.t.Helper()
	roots, err := w.gateway.Root(keystore.ListRoot)
	must(w.t, err)
	opener, err := w.gateway.Decrypter(keystore.Enc)
	must(w.t, err)
	cfg := VerifierConfig{GatewayID: gwID, DeviceID: gwDev, ControlID: ctlID, Roots: roots, Decrypter: opener}
	if change != nil {
		change(&cfg)
	}
	v, err := NewVerifier(cfg)
	must(w.t, err)
	return v
}

// listSpec says what list to make; tests change it to make bad ones.
type listSpec struct {
	name     wire.ListName
	version  uint64
	life     time.Duration
	receiver string
	device   string
	pages    [][]string // rows in JSON
	facts    [][]wire.RowFacts
	locks    []wire.LockRow
	plain    bool
	control  *keystore.Store // whose list key signs
	sender   string
	key      string // default keystore.List
	to       *smx509.Certificate
	manifest func(*wire.Manifest)
}

func (w *world) make(s listSpec) []byte {
	t := w.t
	t.Helper()
	if s.control == nil {
		s.control = w.control
	}
	if s.to == nil {
		s.to = leaf(t, w.gateway, keystore.Enc)
	}
	set := func(p *string, d string) {
		if *p == "" {
			*p = d
		}
	}
	set(&s.receiver, gwID)
	set(&s.device, gwDev)
	set(&s.sender, ctlID)
	set(&s.key, keystore.List)
	if s.life == 0 {
		s.life = time.Hour
	}
	from := signer(t, s.control, s.key, s.sender)
	chain, err := s.control.Chain(s.key)
	must(t, err)
	seal := func(kind string, body []byte, ext map[string]jsontext.Value, to *smx509.Certificate) []byte {
		if ext == nil {
			ext = map[string]jsontext.Value{}
		}
		ext[wire.ExtSigner] = envelope.SignerExt(chain)
		line, err := from.Seal(envelope.Header{MsgType: kind, Receiver: s.receiver, Ext: ext}, body, to)
		must(t, err)
		return line
	}
	m := wire.Manifest{List: s.name, Version: s.version, NotAfter: wire.FormatTime(time.Now().Add(s.life)), Receiver: s.receiver, Pages: []wire.ManifestPage{}, Locks: s.locks}
	var lines [][]byte
	for i, rows := range s.pages {
		to := s.to
		if s.plain {
			to = nil
		}
		kind, body := "T6", fmt.Sprintf(`{"gatewayId":%q,"deviceId":%q,"keyType":"SM2-SM4","timestamp":%q,"data":[%s]}`, s.receiver, s.device, wire.FormatTime(time.Now()), strings.Join(rows, ","))
		var ext map[string]jsontext.Value
		if s.name == wire.PoliciesList {
			kind, body = "T8", fmt.Sprintf(`{"gatewayId":%q,"deviceId":%q,"timestamp":%q,"policyList":[%s]}`, s.receiver, s.device, wire.FormatTime(time.Now()), strings.Join(rows, ","))
		} else if i < len(s.facts) {
			raw, err := json.Marshal(s.facts[i])
			must(t, err)
			ext = map[string]jsontext.Value{wire.ExtRows: raw}
		}
		line := seal(kind, []byte(body), ext, to)
		m.Pages = append(m.Pages, wire.ManifestPage{SM3: wire.PageHash(line), Bytes: len(line)})
		m.Rows += len(rows)
		lines = append(lines, line)
	}
	if s.manifest != nil {
		s.manifest(&m)
	}
	body, err := wire.EncodeExtension(&m)
	must(t, err)
	lines = append([][]byte{seal(wire.TypeManifest, body, nil, nil)}, lines...)
	return append(bytes.Join(lines, []byte("\n")), '\n')
}

func grantRow(n int, apps ...string) string {
	list, _ := json.Marshal(apps)
	return fmt.Sprintf(`{"userId":"USR%08d","deviceId":"DEV%08d","authenticationToken":"tok%08d","expirationDate":"2099-01-01T00:00:00Z","appIdList":%s}`, n, n, n, list)
}

func policyRow(n int, kind, data string) string {
	return fmt.Sprintf(`{"policyId":"POL%08d","policyName":"p","policyType":%q,"policyData":%q}`, n, kind, data)
}

func (w *world) grants(version uint64, rows ...string) []byte {
	return w.make(listSpec{name: wire.GrantsList, version: version, pages: [][]string{rows}})
}

func (w *world) policies(version uint64, locks []wire.LockRow, rows ...string) []byte {
	return w.make(listSpec{name: wire.PoliciesList, version: version, pages: [][]string{rows}, locks: locks})
}

func (w *world) delta(d wire.Delta) []byte {
	w.t.Helper()
	if d.Timestamp == "" {
		d.Timestamp = wire.FormatTime(time.Now())
	}
	body, err := wire.EncodeExtension(&d)
	must(w.t, err)
	return w.rawDelta(body)
}

func (w *world) rawDelta(body []byte) []byte {
	w.t.Helper()
	chain, err := w.control.Chain(keystore.List)
	must(w.t, err)
	line, err := signer(w.t, w.control, keystore.List, ctlID).Seal(envelope.Header{
		MsgType: wire.TypeDelta, Receiver: gwID, Ext: map[string]jsontext.Value{wire.ExtSigner: envelope.SignerExt(chain)},
	}, body, leaf(w.t, w.gateway, keystore.Enc))
	must(w.t, err)
	return line
}

// received is one message that the center took.
type received struct {
	at   time.Time
	kind string
	id   string
	body []byte
	ext  map[string]jsontext.Value
}

// center is a control center as the binding has it, over TLCP on an in-memory
// listener, with faults on demand.
type center struct {
	w     *world
	srv   *http.Server
	tlcp  *tlcp.Config
	byTLS bool // instead of TLCP
	conns chan net.Conn
	in    *envelope.Receiver
	out   *envelope.Sender
	party *keystore.Store // who connects
	id    string

	mu       sync.Mutex
	got      []received // guarded by mu
	grants   []byte     // guarded by mu
	policies []byte     // guarded by mu
	gv, pv   uint64     // guarded by mu
	notMod   int        // guarded by mu
	pulls    int        // guarded by mu
	requests []time.Time
	streams  map[chan string]bool // guarded by mu; the open push streams
	lastIDs  []string             // guarded by mu
	fault    func(w http.ResponseWriter, r *http.Request) bool
	refuse   func(kind string) reason.Reason
	noEcho   bool // Table 5 without the nonce
	dials    int
	dead     bool       // guarded by mu: dials fail
	open     []net.Conn // guarded by mu: what to cut when dead
	whole    bool       // knows X.report
	lists    int        // guarded by mu; resource lists in answers to X.report
	answer   func(kind string, m *envelope.Message) (msgType string, body []byte, ext map[string]jsontext.Value)
}

func (w *world) center(party *keystore.Store, id string) *center {
	t := w.t
	t.Helper()
	opener, err := w.control.Decrypter(keystore.Enc)
	must(t, err)
	in, err := envelope.NewReceiver(envelope.Config{ID: ctlID, Decrypter: opener, RequireSealed: true, Signers: envelope.Pinned(leaf(t, party, keystore.Sign))})
	must(t, err)
	c := &center{w: w, conns: make(chan net.Conn), in: in, out: signer(t, w.control, keystore.Sign, ctlID), party: party, id: id, streams: map[chan string]bool{}}
	cert, err := w.control.TLSCertificate(keystore.TLS)
	must(t, err)
	roots, err := w.control.TLSRoots()
	must(t, err)
	pair, err := w.control.TLCPPair()
	must(t, err)
	sm, err := w.control.Root(keystore.TLCPRoot)
	must(t, err)
	c.tlcp = &tlcp.Config{Certificates: []*tlcp.Pair{pair}, ClientAuth: tlcp.RequireAndVerifyClientCert, ClientCAs: sm, NextProtos: []string{"http/1.1"}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ztna/v1/gateway/lists/{name}", c.list)
	mux.HandleFunc("GET /ztna/v1/gateway/events", c.events)
	mux.HandleFunc("GET /ztna/v1/agent/resources", c.resources)
	mux.HandleFunc("POST /ztna/v1/gateway/", c.message)
	mux.HandleFunc("POST /ztna/v1/agent/", c.message)
	c.srv = &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.requests = append(c.requests, time.Now())
		fault := c.fault
		c.mu.Unlock()
		if fault != nil && fault(rw, r) {
			return
		}
		mux.ServeHTTP(rw, r)
	}), TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots}}
	return c
}

func (c *center) start() func() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.serve(pipeListener{c})
	}()
	return func() {
		c.srv.Close()
		<-done
		time.Sleep(10 * time.Second) // of the bubble: both ends of a pipe may be saying goodbye, which TLS bounds by 5 s
	}
}

func (c *center) serve(ln net.Listener) {
	if c.byTLS {
		c.srv.ServeTLS(ln, "", "")
		return
	}
	c.srv.Serve(tlcp.NewListener(ln, c.tlcp))
}

// dial makes a connection in memory.
func (c *center) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	c.mu.Lock()
	c.dials++
	dead := c.dead
	c.mu.Unlock()
	ours, theirs := net.Pipe()
	if dead {
		theirs.Close()
		ours.Close()
		return nil, errors.New("connection refused")
	}
	select {
	case c.conns <- theirs:
		c.mu.Lock()
		c.open = append(c.open, theirs)
		c.mu.Unlock()
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *center) setDead(dead bool) {
	c.mu.Lock()
	c.dead = dead
	if dead {
		for _, conn := range c.open {
			conn.Close()
		}
		c.open = nil
	}
	c.mu.Unlock()
}

func (c *center) setFault(f func(http.ResponseWriter, *http.Request) bool) {
	c.mu.Lock()
	c.fault = f
	c.mu.Unlock()
}

type pipeListener struct{ c *center }

func (l pipeListener) Accept() (net.Conn, error) {
	conn, ok := <-l.c.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}
func (l pipeListener) Close() error   { l.c.closeConns(); return nil }
func (l pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (c *center) closeConns() {
	defer func() { _ = recover() }() // closed before
	close(c.conns)
}

func (c *center) setLists(gv uint64, grants []byte, pv uint64, policies []byte) {
	c.mu.Lock()
	c.gv, c.grants, c.pv, c.policies = gv, grants, pv, policies
	c.mu.Unlock()
}

func (c *center) list(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	version, body := c.gv, c.grants
	if r.PathValue("name") == "policies" {
		version, body = c.pv, c.policies
	}
	etag := fmt.Sprintf(`"%s-%d"`, r.PathValue("name"), version)
	same := r.Header.Get("If-None-Match") == etag
	if same {
		c.notMod++
	} else {
		c.pulls++
	}
	c.mu.Unlock()
	if same {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("ETag", etag)
	w.Write(body)
}

func (c *center) events(w http.ResponseWriter, r *http.Request) {
	ch := make(chan string, 64)
	c.mu.Lock()
	c.streams[ch] = true
	c.lastIDs = append(c.lastIDs, r.Header.Get("Last-Event-ID"))
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.streams, ch)
		c.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(200)
	rc := http.NewResponseController(w)
	rc.Flush()
	beat := time.NewTicker(10 * time.Second)
	defer beat.Stop()
	for {
		text := ": beat\n\n"
		select {
		case <-r.Context().Done():
			return
		case text = <-ch:
			if text == "" {
				return
			}
		case <-beat.C:
		}
		if _, err := io.WriteString(w, text); err != nil {
			return
		}
		rc.Flush()
	}
}

// push sends an event to every open stream.
func (c *center) push(id, name string, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ch := range c.streams {
		ch <- fmt.Sprintf("event: %s\ndata: %s\nid: %s\n\n", name, data, id)
	}
}

func (c *center) message(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	m, err := c.in.Open(raw)
	if err != nil {
		c.w.t.Errorf("center: %s: %v: %v", r.URL.Path, err, errors.Unwrap(err))
		w.WriteHeader(400)
		return
	}
	c.mu.Lock()
	repeat := slices.ContainsFunc(c.got, func(g received) bool { return g.id == m.Header.MsgID })
	whole := c.whole && m.Header.MsgType == wire.TypeReport
	if !repeat && whole {
		q, err := wire.DecodeExtension[wire.AgentReport](m.Body)
		must(c.w.t, err)
		c.got = append(c.got, received{time.Now(), "T16", m.Header.MsgID, q.Authentication, nil}, received{time.Now(), "T21", m.Header.MsgID, q.Status, nil})
	} else if !repeat {
		c.got = append(c.got, received{time.Now(), m.Header.MsgType, m.Header.MsgID, m.Body, m.Header.Ext})
	}
	refuse, answer, silent := c.refuse, c.answer, c.noEcho
	gv, pv := c.gv, c.pv
	c.mu.Unlock()
	why := reason.OK
	if refuse != nil && whole {
		why = refuse("T16")
	} else if refuse != nil {
		why = refuse(m.Header.MsgType)
	}
	code := wire.Success
	if why != reason.OK {
		code = wire.Failure
	}
	kind := "T5"
	if whole {
		kind = "T18"
	}
	body, err := wire.Encode(&wire.Reply{Code: code, Result: why.Result()})
	var ext map[string]jsontext.Value
	if n := m.Header.Ext[wire.ExtNonce]; m.Header.MsgType == "T4" && n != nil && !silent {
		ext = extMap{wire.ExtNonce: n, wire.ExtListVersion: jsontext.Value(fmt.Sprintf("%q", fmt.Sprint(gv))), wire.ExtPolicyVersion: jsontext.Value(fmt.Sprintf("%q", fmt.Sprint(pv)))}
	}
	if whole && why == reason.OK {
		kind, body, ext = c.report(m)
	} else if answer != nil && why == reason.OK {
		if k, b, e := answer(m.Header.MsgType, m); k != "" {
			kind, body, ext, err = k, b, e, nil
		}
	}
	if err == nil {
		c.reply(w, why, kind, body, ext)
	}
}

// report answers X.report by what the answers to its tables would be.
func (c *center) report(m *envelope.Message) (string, []byte, extMap) {
	q, err := wire.DecodeExtension[wire.AgentReport](m.Body)
	must(c.w.t, err)
	_, token, ext := c.answer("T16", &envelope.Message{Header: m.Header, Body: q.Authentication})
	_, list, more := c.answer("T19", nil)
	r := wire.AgentReportReply{Authentication: token}
	var said wire.ResourceList
	must(c.w.t, json.Unmarshal(list, &said))
	if tag := fmt.Sprint(len(said.ResourceList)); tag != q.Resources {
		r.Resources = &wire.TaggedResources{Tag: tag, List: list}
		must(c.w.t, json.Unmarshal(more[wire.ExtGateways], &r.Resources.Gateways))
		must(c.w.t, json.Unmarshal(more[wire.ExtResources], &r.Resources.Facts))
	}
	c.mu.Lock()
	c.lists += map[bool]int{true: 1}[r.Resources != nil]
	c.mu.Unlock()
	body, err := wire.EncodeExtension(&r)
	must(c.w.t, err)
	return wire.TypeReport, body, ext
}

func (c *center) reply(w http.ResponseWriter, why reason.Reason, kind string, body []byte, ext map[string]jsontext.Value) {
	env, err := c.out.Seal(envelope.Header{MsgType: kind, Receiver: c.id, Ext: ext}, body, leaf(c.w.t, c.party, keystore.Enc))
	if err != nil {
		c.w.t.Error(err)
		return
	}
	if why != reason.OK {
		w.WriteHeader(why.Status())
	}
	w.Write(env)
}

func (c *center) resources(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	answer := c.answer
	c.mu.Unlock()
	kind, body, ext := answer("T19", nil)
	c.reply(w, reason.OK, kind, body, ext)
}

// of returns the messages of one type, in the order of arrival.
func (c *center) of(kind string) []received {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []received
	for _, g := range c.got {
		if g.kind == kind {
			out = append(out, g)
		}
	}
	return out
}

// enforcer is a handler that remembers.
type enforcer struct {
	mu       sync.Mutex
	log      []string // guarded by mu
	rows     []GrantRow
	version  uint64
	policies *Policies
	deltas   []*Delta
	fail     func(what string) error
}

func (e *enforcer) note(format string, args ...any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	what := fmt.Sprintf(format, args...)
	e.log = append(e.log, what)
	if e.fail != nil {
		return e.fail(what)
	}
	return nil
}

func (e *enforcer) Grants(_ context.Context, g *Grants) error {
	if err := e.note("grants %d", g.Version); err != nil {
		return err
	}
	e.mu.Lock()
	e.rows, e.version = g.Rows, g.Version
	e.mu.Unlock()
	if g.Store != nil {
		return g.Store()
	}
	return nil
}

func (e *enforcer) Policies(_ context.Context, p *Policies) error {
	if err := e.note("policies %d", p.Version); err != nil {
		return err
	}
	e.mu.Lock()
	e.policies = p
	e.mu.Unlock()
	return nil
}

func (e *enforcer) Delta(_ context.Context, d *Delta) error {
	word := "delta"
	if d.NarrowOnly {
		word = "narrow"
	}
	if err := e.note("%s %d-%d", word, d.From, d.To); err != nil {
		return err
	}
	e.mu.Lock()
	e.deltas = append(e.deltas, d)
	e.rows = d.fold(e.rows)
	e.mu.Unlock()
	return nil
}

// calls returns what was called so far.
func (e *enforcer) calls() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.log, ", ")
}

func (e *enforcer) users() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for _, r := range e.rows {
		out = append(out, r.UserID)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// alerts is a sink that remembers.
type alerts struct {
	mu  sync.Mutex
	got []alert.Alert // guarded by mu
}

func (a *alerts) Raise(x alert.Alert) {
	a.mu.Lock()
	a.got = append(a.got, x)
	a.mu.Unlock()
}

func (a *alerts) count(code alert.Code) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range a.got {
		if x.Code == code {
			n++
		}
	}
	return n
}

func (w *world) gatewayConfig(c *center, h Handler) GatewayConfig {
	return GatewayConfig{
		URL: "https://control.test:8443", StateDir: filepath.Join(w.t.TempDir(), "state"), GatewayID: gwID, DeviceID: gwDev, DeviceName: "edge-1",
		IP: "192.0.2.1", Keys: w.gateway, Handler: h, Dial: c.dial, Usage: func() Usage { return Usage{1, 2, 3} }, Alerts: &alerts{},
		Outbox: NewMemory(MemoryConfig{}),
	}
}

// run starts g and returns a function that stops it and waits.
func run(t testing.TB, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	var once sync.Once
	return func() {
		once.Do(func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("Run returned %v, want the context's error", err)
			}
		})
	}
}

type extMap = map[string]jsontext.Value

// countHeld counts the messages of one type; mu is held.
func (c *center) countHeld(kind string) (n int) {
	for _, g := range c.got {
		if g.kind == kind {
			n++
		}
	}
	return n
}
