package control

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/wire"
)

// overTLCP lets the clients of a test speak TLCP.
var overTLCP bool

// client is an enrolled party, written by hand from the binding.
type client struct {
	w        *world
	kind     string
	id       string
	device   string
	keys     *keystore.Store
	hc       *http.Client
	send     *envelope.Sender
	recv     *envelope.Receiver // answers
	lists    *envelope.Receiver // lists and deltas
	control  *smx509.Certificate
	base     string
	sealed   bool
	answered *envelope.Message
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (w *world) client(kind, id, device string, keys *keystore.Store) *client {
	w.t.Helper()
	t := w.t
	c := &client{w: w, kind: kind, id: id, device: device, keys: keys, sealed: kind == "agent", base: w.url(0) + "/ztna/v1/" + kind}
	channels := must[*channel.Client](t)(channel.New(channel.Config{Keys: keys, TLCP: overTLCP, Peer: func(id certid.Identity) error {
		if id.Control != "CTL00000001" {
			return errors.New("not the control center")
		}
		return nil
	}}))
	tr := &http.Transport{DialTLSContext: channels.Dial}
	t.Cleanup(tr.CloseIdleConnections)
	c.hc = &http.Client{Transport: tr}
	signer, err := keys.Signer(keystore.Sign)
	if err != nil {
		t.Fatal(err)
	}
	chain := must[[]*smx509.Certificate](t)(keys.Chain(keystore.Sign))
	now := w.cfg.Now
	if now == nil {
		now = time.Now
	}
	c.send = &envelope.Sender{ID: id, Key: signer, Cert: chain[0], Now: now}
	c.control = must[[]*smx509.Certificate](t)(keys.Chain(keystore.ControlEnc))[0]
	from := must[[]*smx509.Certificate](t)(keys.Chain(keystore.ControlSign))[0]
	dec, err := keys.Decrypter(keystore.Enc)
	if err != nil {
		t.Fatal(err)
	}
	cfg := envelope.Config{ID: id, Decrypter: dec, Now: now, Signers: func(keyID, sender string) (*smx509.Certificate, error) {
		if sender != "CTL00000001" || envelope.KeyID(from) != keyID {
			return nil, errors.New("not the control center")
		}
		return from, nil
	}}
	c.recv = must[*envelope.Receiver](t)(envelope.NewReceiver(cfg))
	roots := must[*smx509.CertPool](t)(keys.Root(keystore.ListRoot))
	c.lists = must[*envelope.Receiver](t)(envelope.NewReceiver(envelope.Config{ID: id, Decrypter: dec, Skew: -1, Now: now, Resolve: envelope.ListSigner(roots, now)}))
	return c
}

// seal makes the envelope of a message.
func (c *client) seal(msgType, msgID string, body any) []byte {
	c.w.t.Helper()
	raw, err := json.Marshal(body, json.Deterministic(true))
	if err != nil {
		c.w.t.Fatal(err)
	}
	to := c.control
	if !c.sealed {
		to = nil
	}
	env, err := c.send.Seal(envelope.Header{MsgType: msgType, MsgID: msgID, Receiver: "CTL00000001"}, raw, to)
	if err != nil {
		c.w.t.Fatal(err)
	}
	return env
}

// post sends raw bytes and returns the status and the opened answer's body.
func (c *client) post(path string, raw []byte) (int, string) {
	c.w.t.Helper()
	resp, err := c.hc.Post(c.base+path, "application/json", bytes.NewReader(raw))
	if err != nil {
		c.w.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode, c.open(resp)
}

func (c *client) open(resp *http.Response) string {
	c.w.t.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.w.t.Fatal(err)
	}
	if resp.Header.Get("Content-Type") != "application/json" {
		return string(body)
	}
	m, err := c.recv.Open(body)
	if err != nil {
		c.w.t.Fatalf("answer does not open: %v (%v): %.300s", err, errors.Unwrap(err), body)
	}
	c.answered = m
	return string(m.Body)
}

// message sends one message under a fresh id.
func (c *client) message(path, msgType string, body any) (int, string) {
	c.w.t.Helper()
	return c.post(path, c.seal(msgType, "", body))
}

// get fetches a path with headers.
func (c *client) get(path string, header ...string) (*http.Response, string) {
	c.w.t.Helper()
	r, _ := http.NewRequestWithContext(c.w.t.Context(), "GET", c.base+path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := c.hc.Do(r)
	if err != nil {
		c.w.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") == "application/x-ndjson" || resp.StatusCode == 304 {
		body, _ := io.ReadAll(resp.Body)
		return resp, string(body)
	}
	return resp, c.open(resp)
}

func (c *client) now() string { return wire.FormatTime(c.send.Now()) }

func (c *client) t4() wire.DeviceIdentity {
	return wire.DeviceIdentity{GatewayID: c.id, DeviceID: c.device, DeviceName: "gw", DeviceType: "lab", SystemType: "linux", IP: "127.0.0.1", Port: 443, Timestamp: c.now()}
}

// identify sends a good T4.
func (c *client) identify() {
	c.w.t.Helper()
	if status, body := c.message("/identity", "T4", c.t4()); status != 200 || !strings.Contains(body, `"code":200`) {
		c.w.t.Fatalf("T4: %d %s", status, body)
	}
}

func (c *client) t16(user string, factors ...string) wire.Authentication {
	m := wire.Authentication{AgentID: c.id, DeviceID: c.device, UserID: user, UserAuthenticationMethod: 1, DeviceType: "lab", SystemType: "linux",
		IP: "127.0.0.1", Port: 1, Timestamp: c.now()}
	for _, f := range factors {
		m.UserAuthenticationList = append(m.UserAuthenticationList, wire.Factor{AuthenticationType: 1, AuthenticationContent: f})
	}
	return m
}

// login sends T16 and returns T18.
func (c *client) login(user string, factors ...string) (int, *wire.AuthenticationReply) {
	c.w.t.Helper()
	status, body := c.message("/authentication", "T16", c.t16(user, factors...))
	r := new(wire.AuthenticationReply)
	if err := json.Unmarshal([]byte(body), r); err != nil {
		c.w.t.Fatalf("T18 %q: %v", body, err)
	}
	return status, r
}

// list is a list as a gateway reads it.
type list struct {
	manifest wire.Manifest
	grants   []wire.Grant
	facts    []wire.RowFacts
	policies []wire.Policy
	pages    int
}

// pull fetches and verifies a list.
func (c *client) pull(name wire.ListName) list {
	c.w.t.Helper()
	resp, body := c.get("/lists/" + string(name))
	if resp.StatusCode != 200 {
		c.w.t.Fatalf("list %s: %d %s", name, resp.StatusCode, body)
	}
	return c.read(name, body)
}

func (c *client) read(name wire.ListName, body string) (l list) {
	c.w.t.Helper()
	lines := strings.Split(strings.TrimSuffix(body, "\n"), "\n")
	m, err := c.lists.Open([]byte(lines[0]), wire.TypeManifest)
	if err != nil {
		c.w.t.Fatalf("manifest: %v (%v)", err, errors.Unwrap(err))
	}
	manifest, err := wire.DecodeExtension[wire.Manifest](m.Body)
	if err != nil || len(manifest.Pages) != len(lines)-1 || manifest.List != name || manifest.Receiver != c.id {
		c.w.t.Fatalf("manifest %+v with %d lines: %v", manifest, len(lines), err)
	}
	l.manifest, l.pages = *manifest, len(manifest.Pages)
	for i, line := range lines[1:] {
		if wire.PageHash([]byte(line)) != manifest.Pages[i].SM3 || len(line) != manifest.Pages[i].Bytes || len(line) > wire.MaxMessage {
			c.w.t.Fatalf("page %d does not match the manifest", i)
		}
		if !strings.Contains(line, envelope.EncSM2SM4) {
			c.w.t.Fatalf("page %d is not sealed", i)
		}
		m, err := c.lists.Open([]byte(line), "T6", "T8")
		if err != nil {
			c.w.t.Fatalf("page %d: %v (%v)", i, err, errors.Unwrap(err))
		}
		if name == wire.GrantsList {
			g, bad, err := wire.DecodeGrantList(m.Body, wire.Strict)
			if err != nil || len(bad) > 0 {
				c.w.t.Fatalf("page %d: %v %v", i, err, bad)
			}
			l.grants = append(l.grants, g.Data...)
			var facts []wire.RowFacts
			if err := json.Unmarshal(m.Header.Ext[wire.ExtRows], &facts); err != nil {
				c.w.t.Fatal(err)
			}
			l.facts = append(l.facts, facts...)
		} else {
			g, bad, err := wire.DecodePolicyList(m.Body, wire.Strict)
			if err != nil || len(bad) > 0 {
				c.w.t.Fatalf("page %d: %v %v", i, err, bad)
			}
			l.policies = append(l.policies, g.PolicyList...)
		}
	}
	return l
}

// sse is one event of a push stream.
type sse struct{ id, event, data string }

// pushes is an open push stream.
type pushes struct {
	c      *client
	events chan sse
	resp   *http.Response
}

// stream opens the push stream.
func (c *client) stream(lastEventID string) *pushes {
	c.w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, _ := http.NewRequestWithContext(ctx, "GET", c.base+"/events", nil)
	if lastEventID != "" {
		r.Header.Set("Last-Event-ID", lastEventID)
	}
	resp, err := c.hc.Do(r)
	if err != nil {
		c.w.t.Fatal(err)
	}
	if resp.StatusCode != 200 {
		body := c.open(resp)
		c.w.t.Fatalf("events: %d %s", resp.StatusCode, body)
	}
	p := &pushes{c: c, events: make(chan sse, 1024), resp: resp}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(p.events)
		in := bufio.NewReaderSize(resp.Body, 1<<20)
		var e sse
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			line = strings.TrimSuffix(line, "\n")
			name, value, _ := strings.Cut(line, ": ")
			switch {
			case line == "":
				if e != (sse{}) {
					p.events <- e
				}
				e = sse{}
			case name == "id":
				e.id = value
			case name == "event":
				e.event = value
			case name == "data":
				e.data = value
			case strings.HasPrefix(line, ":"):
				e.event = line
			}
		}
	}()
	c.w.t.Cleanup(func() {
		cancel()
		resp.Body.Close()
		<-done
	})
	return p
}

// next returns the next event, which must be of this kind; comments are passed
// over.
func (p *pushes) next(event string) sse {
	p.c.w.t.Helper()
	for {
		select {
		case e, ok := <-p.events:
			if !ok {
				p.c.w.t.Fatalf("the stream ended, want %s", event)
			}
			if strings.HasPrefix(e.event, ":") && event != e.event {
				continue
			}
			if e.event != event {
				p.c.w.t.Fatalf("got event %s %q %.200s, want %s", e.event, e.id, e.data, event)
			}
			return e
		case <-time.After(10 * time.Second):
			p.c.w.t.Fatalf("no event in 10 s, want %s", event)
		}
	}
}

// delta returns the next event, which must be a genuine delta.
func (p *pushes) delta() (*wire.Delta, sse) {
	p.c.w.t.Helper()
	e := p.next("delta")
	m, err := p.c.lists.Open([]byte(e.data), wire.TypeDelta)
	if err != nil {
		p.c.w.t.Fatalf("delta: %v (%v)", err, errors.Unwrap(err))
	}
	d, err := wire.DecodeExtension[wire.Delta](m.Body)
	if err != nil {
		p.c.w.t.Fatal(err)
	}
	return d, e
}

// begun passes over what a fresh stream begins with.
func (p *pushes) begun() *pushes {
	p.next("changed")
	p.next("changed")
	return p
}

func (c *client) ackGrants(version uint64) {
	c.w.t.Helper()
	if status, body := c.message("/acks", wire.TypeAck, wire.Ack{Version: version, List: wire.GrantsList, Applied: true, Result: "OK"}); status != 200 {
		c.w.t.Fatalf("ack: %d %s", status, body)
	}
}

func newMsgID() string {
	raw := make([]byte, 8)
	rand.Read(raw)
	return hex.EncodeToString(raw)
}
