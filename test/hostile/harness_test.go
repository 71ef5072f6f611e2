package hostile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// patience is how long the product may take to refuse; its own deadline is
// longer, so that only what it noticed counts.
const (
	patience = 10 * time.Second
	deadline = 20 * time.Second
)

func long() bool { return os.Getenv("YUMEN_LONG") != "" }

// world is one authority with an intermediate, and a genuine party on each side.
var world = sync.OnceValue(func() *materials {
	root := NewAuthority("hostile root", nil)
	sub := NewAuthority("hostile sub", root)
	return &materials{root: root, sub: sub, server: sub.Identity(), client: sub.Identity()}
})

type materials struct {
	root, sub      *Authority
	server, client *Identity
}

func pair(t testing.TB, id *Identity) *tlcp.Pair {
	t.Helper()
	chain := func(l *Leaf) tlcp.Certificate {
		c := tlcp.Certificate{Chain: []*smx509.Certificate{l.Cert}, Key: l.Key}
		for a := l.By; a != nil; a = a.Over {
			c.Chain = append(c.Chain, a.Cert)
		}
		return c
	}
	p, err := tlcp.NewPair(chain(id.Sign), chain(id.Enc))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// face is one way in which both sides may be set up.
type face struct {
	suite  uint16
	mutual bool
}

func (f face) String() string {
	s := tlcp.CipherSuiteName(f.suite)
	if f.mutual {
		s += "_mutual"
	}
	return s
}

var faces = []face{{ECCGCM, false}, {ECCCBC, false}, {ECCGCM, true}, {ECCCBC, true}, {ECDHEGCM, true}, {ECDHECBC, true}}

var suites = []uint16{ECCGCM, ECCCBC, ECDHEGCM, ECDHECBC}

func (f face) server(t testing.TB) *tlcp.Config {
	c := &tlcp.Config{Certificates: []*tlcp.Pair{pair(t, world().server)}, CipherSuites: []uint16{f.suite}}
	if f.mutual {
		c.ClientAuth, c.ClientCAs = tlcp.RequireAndVerifyClientCert, world().root.Pool()
	}
	return c
}

func (f face) client(t testing.TB) *tlcp.Config {
	c := &tlcp.Config{RootCAs: world().root.Pool(), ServerName: Host, CipherSuites: []uint16{f.suite}}
	if f.mutual {
		c.Certificates = []*tlcp.Pair{pair(t, world().client)}
	}
	return c
}

// outcome is what the product made of a connection.
type outcome struct {
	handshake error
	after     error // that ended the exchange of data
	state     tlcp.ConnectionState
}

func (o outcome) served() bool { return o.handshake == nil && o.state.HandshakeComplete }

// sockets returns both ends of a TCP connection.
func sockets(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	a.SetDeadline(time.Now().Add(patience))
	return a, b
}

// run does the product's side: handshake, then echo until the end.
func run(c *tlcp.Conn) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		defer c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		o := outcome{handshake: c.HandshakeContext(ctx)}
		o.state = c.ConnectionState()
		if o.handshake == nil {
			c.SetDeadline(time.Now().Add(deadline))
			_, o.after = io.Copy(c, c)
		}
		done <- o
	}()
	return done
}

// against returns our client, ready, against the product's server.
func against(t testing.TB, f face, cfg *tlcp.Config) (*Client, <-chan outcome) {
	t.Helper()
	a, b := sockets(t)
	return clientOver(f, a, b, cfg)
}

// inMemory is against, in a bubble: see Memory.
func inMemory(f face, cfg *tlcp.Config) (*Client, <-chan outcome) {
	a, b := Memory()
	a.SetDeadline(time.Now().Add(patience / 2))
	return clientOver(f, a, b, cfg)
}

func clientOver(f face, a, b net.Conn, cfg *tlcp.Config) (*Client, <-chan outcome) {
	c := &Client{Suites: []uint16{f.suite}}
	c.Conn = a
	if f.mutual {
		c.Own = world().client
	}
	return c, run(tlcp.Server(b, cfg))
}

// before returns our server, ready, before the product's client.
func before(t testing.TB, f face, cfg *tlcp.Config) (*Server, <-chan outcome) {
	t.Helper()
	a, b := sockets(t)
	return serverOver(f, a, b, cfg)
}

// beforeInMemory is before, in a bubble: see Memory.
func beforeInMemory(f face, cfg *tlcp.Config) (*Server, <-chan outcome) {
	a, b := Memory()
	a.SetDeadline(time.Now().Add(patience / 2))
	return serverOver(f, a, b, cfg)
}

func serverOver(f face, a, b net.Conn, cfg *tlcp.Config) (*Server, <-chan outcome) {
	s := &Server{Choose: f.suite, Request: f.mutual}
	s.Conn, s.Own = a, world().server
	return s, run(tlcp.Client(b, cfg))
}

// result waits for the product's side.
func result(t testing.TB, done <-chan outcome) outcome {
	t.Helper()
	select {
	case o := <-done:
		return o
	case <-time.After(patience):
		t.Error("the product's side did not end")
		return outcome{handshake: errors.New("hangs")}
	}
}

// refused checks that the product sent a fatal alert and closed, and that it
// says why. It returns the alert, never nil.
func refused(t testing.TB, p *Peer, done <-chan outcome) *Alert {
	t.Helper()
	a, err := p.End()
	if err != nil {
		p.Conn.Close()
		t.Fatalf("not refused: %v; %v", err, result(t, done))
	}
	p.Conn.Close()
	o := result(t, done)
	why := o.handshake
	if why == nil {
		why = o.after
	}
	var ae *tlcp.AlertError
	if !errors.As(why, &ae) || ae.Remote {
		t.Errorf("the product's error is %v, want its own alert", why)
	}
	if a == nil {
		t.Errorf("closed without an alert (%v)", why)
		return &Alert{}
	}
	if a.Level != 2 || a.Code == 0 || ae != nil && byte(ae.Alert) != a.Code {
		t.Errorf("%v, want a fatal one that is the error's (%v)", a, why)
	}
	return a
}

// refusedEarly is refused, and no application data was ever taken.
func refusedEarly(t testing.TB, p *Peer, done <-chan outcome) *Alert {
	t.Helper()
	early := make(chan outcome, 1)
	go func() {
		o := <-done
		if o.served() {
			t.Error("the handshake was completed")
		}
		early <- o
	}()
	return refused(t, p, early)
}

// served finishes the exchange: data both ways, then close_notify.
func served(t testing.TB, p *Peer, done <-chan outcome) outcome {
	t.Helper()
	for _, n := range []int{1, 100, 16384} {
		if err := p.Echo(random(n)); err != nil {
			t.Errorf("echo of %d bytes: %v", n, err)
			break
		}
	}
	p.Send(TypeAlert, []byte{1, 0})
	if a, err := p.End(); err != nil || a == nil || a.Code != 0 {
		t.Errorf("after our close_notify: %v, %v; want the other's", a, err)
	}
	p.Conn.Close()
	o := result(t, done)
	if o.handshake != nil || o.after != nil {
		t.Errorf("the product's side: %v, %v", o.handshake, o.after)
	}
	return o
}

func check(t testing.TB, err error, what string) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func each(t *testing.T, test func(*testing.T, face)) {
	for _, f := range faces {
		t.Run(f.String(), func(t *testing.T) {
			t.Parallel()
			test(t, f)
		})
	}
}

// bubbles is each, in memory and in a bubble: who waits for what never comes
// costs no time.
func bubbles(t *testing.T, test func(*testing.T, face)) {
	world()
	each(t, func(t *testing.T, f face) {
		synctest.Test(t, func(t *testing.T) { test(t, f) })
	})
}

func named(name string, args ...any) string { return fmt.Sprintf(name, args...) }
