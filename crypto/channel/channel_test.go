package channel

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/hello"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	gwID = "GW000000001"
	host = "127.0.0.1"
)

var pass = []byte("a passphrase for tests")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is an authority, a gateway that answers and an agent that dials.
type world struct {
	t         *testing.T
	ca        *lab.CA
	gw, agent *keystore.Store
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, ca: newCA(t)}
	w.gw = w.party(w.ca, "gw", certid.Identity{Gateway: gwID, Device: "DEV00000001"}, host)
	w.agent = w.party(w.ca, "agent", certid.Identity{Agent: "AGT00000001", Device: "DEV00000002"})
	return w
}

func newCA(t *testing.T) *lab.CA {
	t.Helper()
	ca, err := lab.New(lab.Config{Iterations: 1000})
	must(t, err)
	return ca
}

func (w *world) party(ca *lab.CA, name string, id certid.Identity, hosts ...string) *keystore.Store {
	w.t.Helper()
	s, err := ca.Party(filepath.Join(w.t.TempDir(), name), pass, id, hosts)
	must(w.t, err)
	return s
}

// client is the agent's, which looks for the gateway of the world.
func (w *world) client(byTLCP bool, edit ...func(*Config)) *Client {
	w.t.Helper()
	cfg := Config{Keys: w.agent, TLCP: byTLCP, ALPN: []string{"x/1"}, Peer: isGateway}
	for _, f := range edit {
		f(&cfg)
	}
	c, err := New(cfg)
	must(w.t, err)
	return c
}

var errOther = errors.New("another party")

func isGateway(id certid.Identity) error {
	if id.Gateway != gwID {
		return fmt.Errorf("%w: %q", errOther, id.Name())
	}
	return nil
}

// seen is what the server learned of one connection.
type seen struct {
	State
	offered []uint16 // cipher suites, in the client's order
	err     error    // of the handshake
}

// face says what a server speaks, with whose keys and roots.
type face struct {
	tls  *tls.Config
	tlcp *tlcp.Config
}

// face serves both protocols with the keys of store, and demands a client's.
func (w *world) face(store *keystore.Store) *face {
	w.t.Helper()
	cert, err := store.TLSCertificate(keystore.TLS)
	must(w.t, err)
	roots, err := store.TLSRoots()
	must(w.t, err)
	pair, err := store.TLCPPair()
	must(w.t, err)
	smRoots, err := store.Root(keystore.TLCPRoot)
	must(w.t, err)
	return &face{
		&tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, NextProtos: []string{"x/1"}},
		&tlcp.Config{Certificates: []*tlcp.Pair{pair}, ClientAuth: tlcp.RequireAndVerifyClientCert, ClientCAs: smRoots, NextProtos: []string{"x/1"}},
	}
}

// serve answers on a real port, over TLS and TLCP as f says: with an alert
// what it does not speak, with an echo what it does.
func (w *world) serve(f *face) (addr string, got <-chan seen) {
	w.t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	must(w.t, err)
	out, done := make(chan seen, 16), make(chan struct{})
	go func() {
		defer close(done)
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			out <- f.answer(raw)
			raw.Close()
		}
	}()
	w.t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String(), out
}

func (f *face) answer(raw net.Conn) (s seen) {
	if s.err = raw.SetDeadline(time.Now().Add(10 * time.Second)); s.err != nil {
		return s
	}
	first, err := hello.Read(raw)
	if err != nil {
		s.err = err
		return s
	}
	s.offered = first.Suites
	var conn interface {
		net.Conn
		Handshake() error
	}
	switch {
	case first.TLCP() && f.tlcp != nil:
		conn = tlcp.Server(hello.Replay(raw, first.Raw), f.tlcp)
	case !first.TLCP() && f.tls != nil:
		conn = tls.Server(hello.Replay(raw, first.Raw), f.tls)
	default: // in the words of who speaks only the other
		version := []byte{3, 3}
		if first.TLCP() {
			version = []byte{1, 1}
		}
		_, s.err = raw.Write([]byte{21, version[0], version[1], 0, 2, 2, 70})
		return s
	}
	if s.err = conn.Handshake(); s.err != nil {
		return s
	}
	s.State, _ = Of(conn)
	b := make([]byte, 4)
	if _, s.err = io.ReadFull(conn, b); s.err == nil {
		_, s.err = conn.Write(b)
	}
	return s
}

// echo sends four bytes and wants them back.
func echo(t *testing.T, c net.Conn) {
	t.Helper()
	must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	_, err := c.Write([]byte("echo"))
	must(t, err)
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || !bytes.Equal(b, []byte("echo")) {
		t.Errorf("%q came back, %v", b, err)
	}
}

// The right peer by either protocol: both ends know each other, by the protocol
// that was configured, and TLCP is forward secret.
func TestBothEndsKnowEachOther(t *testing.T) {
	w := newWorld(t)
	addr, got := w.serve(w.face(w.gw))
	for _, byTLCP := range []bool{true, false} {
		c, err := w.client(byTLCP).Dial(t.Context(), "tcp", addr)
		must(t, err)
		echo(t, c)
		there := <-got
		here, ok := Of(c)
		c.Close()
		if !ok || there.err != nil {
			t.Fatalf("TLCP %v: the client's state is known: %v; server: %v", byTLCP, ok, there.err)
		}
		protocol, suite := TLS13, "TLS_AES_128_GCM_SHA256"
		if byTLCP {
			protocol, suite = TLCP, "ECDHE_SM4_GCM_SM3"
		}
		for name, s := range map[string]State{"client": here, "server": there.State} {
			if s.Protocol != protocol || s.Suite != suite || s.ALPN != "x/1" || s.Peer == nil {
				t.Errorf("%s: %s %s, ALPN %q, peer known %v; want %s %s", name, s.Protocol, s.Suite, s.ALPN, s.Peer != nil, protocol, suite)
			}
		}
		if id, err := certid.Of(here.Peer); err != nil || id.Gateway != gwID {
			t.Errorf("client: the peer is %+v, %v", id, err)
		}
		if id, err := certid.Of(there.Peer); err != nil || id.Agent != "AGT00000001" {
			t.Errorf("server: the peer is %+v, %v", id, err)
		}
		if byTLCP {
			want := []uint16{tlcp.ECDHE_SM4_GCM_SM3, tlcp.ECDHE_SM4_CBC_SM3}
			if ours := slices.DeleteFunc(there.offered, func(s uint16) bool { return s == 0x00ff }); !slices.Equal(ours, want) {
				t.Errorf("suites offered: %04x, want %04x: E051 first, and none without forward secrecy", ours, want)
			}
		}
	}
}

// ECDHE alone is offered: a server that has only ECC is not spoken to.
func TestNoSuiteWithoutForwardSecrecy(t *testing.T) {
	w := newWorld(t)
	f := w.face(w.gw)
	f.tlcp.CipherSuites = []uint16{tlcp.ECC_SM4_GCM_SM3, tlcp.ECC_SM4_CBC_SM3}
	addr, _ := w.serve(f)
	if c, err := w.client(true).Dial(t.Context(), "tcp", addr); err == nil {
		c.Close()
		t.Error("connected")
	} else if !Answered(err) {
		t.Errorf("%v: the peer had its say", err)
	}
}

// Whoever is not the peer is refused, before anything is said to him.
func TestWrongPeersAreRefused(t *testing.T) {
	w := newWorld(t)
	elsewhere := newCA(t)
	id := certid.Identity{Gateway: gwID, Device: "DEV00000001"}
	faces := map[string]*face{
		"wrong root":     w.face(w.party(elsewhere, "impostor", id, host)),
		"wrong identity": w.face(w.party(w.ca, "other", certid.Identity{Gateway: "GW000000002", Device: "DEV00000003"}, host)),
		"wrong host":     w.face(w.party(w.ca, "elsewhere", id, "192.0.2.1")),
	}
	// The client must be refused for what it sees; that the server would refuse
	// it, too, is another matter.
	faces["wrong root"].tls.ClientAuth, faces["wrong root"].tlcp.ClientAuth = tls.NoClientCert, tlcp.NoClientCert
	for name, f := range faces {
		addr, got := w.serve(f)
		for _, byTLCP := range []bool{true, false} {
			c, err := w.client(byTLCP).Dial(t.Context(), "tcp", addr)
			if err == nil {
				c.Close()
				t.Errorf("%s, TLCP %v: connected", name, byTLCP)
				continue
			}
			if s := <-got; s.err == nil {
				t.Errorf("%s, TLCP %v: the server got data", name, byTLCP)
			}
			var no *DialError
			if errors.As(err, &no) {
				t.Errorf("%s, TLCP %v: %v is no fault of dialing", name, byTLCP, err)
			}
			if is := errors.Is(err, errOther); is != (name == "wrong identity") {
				t.Errorf("%s, TLCP %v: %v", name, byTLCP, err)
			}
			if name != "wrong identity" && !Answered(err) {
				t.Errorf("%s, TLCP %v: %v: the peer had its say", name, byTLCP, err)
			}
		}
		// Under whatever name it was dialed: the right identity alone counts.
		anyName := func(c *Config) { c.AnyName = true }
		for _, byTLCP := range []bool{true, false} {
			c, err := w.client(byTLCP, anyName).Dial(t.Context(), "tcp", addr)
			if (err == nil) != (name == "wrong host") {
				t.Errorf("any name, %s, TLCP %v: %v", name, byTLCP, err)
			}
			if err == nil {
				echo(t, c)
				c.Close()
			}
			<-got
		}
	}
}

// A client of another root is refused by the server, and learns it: by TLCP in
// the handshake, by TLS 1.3 on its first read.
func TestTheServerRefusesStrangers(t *testing.T) {
	w := newWorld(t)
	addr, got := w.serve(w.face(w.gw))
	stranger := w.party(newCA(t), "stranger", certid.Identity{Agent: "AGT00000001", Device: "DEV00000002"})
	for _, root := range []string{keystore.TLSRoot, keystore.TLCPRoot} { // it knows our roots
		must(t, stranger.PutRoot(root, w.ca.RootPEM(root)))
	}
	for _, byTLCP := range []bool{true, false} {
		c, err := w.client(byTLCP, func(c *Config) { c.Keys = stranger }).Dial(t.Context(), "tcp", addr)
		if err == nil {
			must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if err == nil || !Answered(err) {
			t.Errorf("TLCP %v: %v, want the server's alert", byTLCP, err)
		}
		if s := <-got; s.err == nil {
			t.Errorf("TLCP %v: served", byTLCP)
		}
	}
}

// The two certificates of a TLCP peer must be one party's.
func TestPairOfTwoParties(t *testing.T) {
	w := newWorld(t)
	other := w.party(w.ca, "other", certid.Identity{Gateway: "GW000000002", Device: "DEV00000003"}, host)
	certificate := func(s *keystore.Store, name string) tlcp.Certificate {
		chain, err := s.Chain(name)
		must(t, err)
		key, err := s.Signer(name)
		must(t, err)
		return tlcp.Certificate{Chain: chain, Key: key}
	}
	pair, err := tlcp.NewPair(certificate(w.gw, keystore.TLCPSign), certificate(other, keystore.TLCPEnc))
	must(t, err)
	f := w.face(w.gw)
	f.tlcp.Certificates = []*tlcp.Pair{pair}
	addr, got := w.serve(f)
	c, err := w.client(true).Dial(t.Context(), "tcp", addr)
	if err == nil {
		c.Close()
		t.Fatal("connected")
	}
	if !strings.Contains(err.Error(), "GW000000001") && !strings.Contains(err.Error(), "part") {
		t.Errorf("%v does not say whose they are", err)
	}
	t.Log(err)
	if s := <-got; s.err == nil {
		t.Error("the server got data")
	}
}

// Nothing falls back: a peer of the other protocol is an error that says what
// to do.
func TestPeersOfTheOtherProtocol(t *testing.T) {
	w := newWorld(t)
	both := w.face(w.gw)
	for _, c := range []struct {
		name   string
		f      *face
		byTLCP bool
		says   string
	}{
		{"by TLCP to TLS only", &face{tls: both.tls}, true, "speaks no TLCP"},
		{"by TLS to TLCP only", &face{tlcp: both.tlcp}, false, "refuses TLS"},
	} {
		addr, got := w.serve(c.f)
		conn, err := w.client(c.byTLCP).Dial(t.Context(), "tcp", addr)
		if err == nil {
			conn.Close()
			t.Errorf("%s: connected", c.name)
			continue
		}
		if !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "crypto.profile") || !Answered(err) {
			t.Errorf("%s: %v, want it to say %q and the remedy", c.name, err, c.says)
		}
		<-got
		if len(got) != 0 {
			t.Errorf("%s: it tried again", c.name)
		}
	}
	// The same by servers that know nothing of the other protocol at all.
	for _, byTLCP := range []bool{true, false} {
		ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		must(t, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			defer raw.Close()
			_ = raw.SetDeadline(time.Now().Add(10 * time.Second)) // the handshake's error is what counts
			if byTLCP {
				_ = tls.Server(raw, both.tls).Handshake() // as above
			} else {
				_ = tlcp.Server(raw, both.tlcp).Handshake() // as above
			}
			_, _ = io.Copy(io.Discard, raw) // until the client has read the alert
		}()
		conn, err := w.client(byTLCP).Dial(t.Context(), "tcp", ln.Addr().String())
		if err == nil {
			conn.Close()
			t.Errorf("TLCP %v: connected", byTLCP)
		}
		t.Logf("TLCP %v: %v", byTLCP, err)
		ln.Close()
		<-done
	}
}

// A peer that says nothing holds a dial no longer than its bound, or than the
// caller's context; a port where nobody is has its own error.
func TestDeadlines(t *testing.T) {
	w := newWorld(t)
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	must(t, err)
	defer ln.Close() // its kernel accepts, nobody answers
	for _, byTLCP := range []bool{true, false} {
		for _, byContext := range []bool{false, true} {
			ctx, bound := t.Context(), 100*time.Millisecond
			if byContext {
				bound = time.Hour
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
				defer cancel()
			}
			began := time.Now()
			c, err := w.client(byTLCP, func(c *Config) { c.Timeout = bound }).Dial(ctx, "tcp", ln.Addr().String())
			if err == nil {
				c.Close()
				t.Fatal("connected")
			}
			if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || Answered(err) || took < 90*time.Millisecond || took > 8*time.Second {
				t.Errorf("TLCP %v, by context %v: %v after %v", byTLCP, byContext, err, took)
			}
		}
	}
	gone, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	must(t, err)
	gone.Close()
	var no *DialError
	if _, err := w.client(true).Dial(t.Context(), "tcp", gone.Addr().String()); !errors.As(err, &no) || Answered(err) {
		t.Errorf("nobody there: %v", err)
	}
	if _, err := w.client(true).Dial(t.Context(), "tcp", "no port"); !errors.As(err, &no) {
		t.Errorf("no address: %v", err)
	}
}

// Renew takes other keys and the other protocol into use, and on an error keeps
// the old ones.
func TestRenew(t *testing.T) {
	w := newWorld(t)
	addr, got := w.serve(w.face(w.gw))
	c := w.client(true)
	dial := func() seen {
		t.Helper()
		conn, err := c.Dial(t.Context(), "tcp", addr)
		must(t, err)
		defer conn.Close()
		echo(t, conn)
		return <-got
	}
	if s := dial(); s.Protocol != TLCP {
		t.Errorf("protocol %s", s.Protocol)
	}
	empty, err := keystore.Open(filepath.Join(t.TempDir(), "empty"), pass)
	must(t, err)
	if err := c.Renew(empty, false); err == nil {
		t.Error("a folder without keys was taken")
	}
	if s := dial(); s.Protocol != TLCP {
		t.Errorf("after an error: protocol %s", s.Protocol)
	}
	must(t, c.Renew(w.party(w.ca, "renewed", certid.Identity{Agent: "AGT00000009", Device: "DEV00000002"}), false))
	s := dial()
	if id, err := certid.Of(s.Peer); s.Protocol != TLS13 || err != nil || id.Agent != "AGT00000009" {
		t.Errorf("renewed: %s, %+v, %v", s.Protocol, id, err)
	}
	if _, err := New(Config{Keys: empty, TLCP: true, Peer: isGateway}); err == nil {
		t.Error("a channel without keys was made")
	}
	if _, err := New(Config{Keys: w.agent}); err == nil {
		t.Error("a channel that accepts any peer was made")
	}
}

// Of knows no connection without a handshake, and finds the one beneath.
func TestOf(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	for name, c := range map[string]net.Conn{
		"none": nil, "plain": a, "TLS before": tls.Client(a, &tls.Config{ServerName: host}), "TLCP before": tlcp.Client(a, &tlcp.Config{ServerName: host}),
	} {
		if s, ok := Of(c); ok {
			t.Errorf("%s: %+v", name, s)
		}
	}
	w := newWorld(t)
	addr, got := w.serve(w.face(w.gw))
	c, err := w.client(true).Dial(t.Context(), "tcp", addr)
	must(t, err)
	defer c.Close()
	if s, ok := Of(wrapped{c}); !ok || s.Protocol != TLCP {
		t.Errorf("wrapped: %+v, %v", s, ok)
	}
	echo(t, c)
	<-got
	if s := OfTLS(tls.ConnectionState{Version: tls.VersionTLS12, PeerCertificates: []*x509.Certificate{{}}}); s.Protocol != TLS12 || s.Peer == nil {
		t.Errorf("TLS 1.2: %+v", s)
	}
}

type wrapped struct{ net.Conn }

func (w wrapped) NetConn() net.Conn { return w.Conn }
