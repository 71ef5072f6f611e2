package e2e

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/test/testbed"
)

// upgrade puts the program in place of the one that runs.
func (l *lone) upgrade(t testing.TB) *testbed.Process {
	return testbed.Run(t, "lone gateway", "gateway", "run", "-c", filepath.Join(l.Dir, "gateway", "gateway.yaml"), "--take-over")
}

// The program is replaced while clients connect, each request over a connection
// of its own: none of them fails, and no audit record is lost. The long form
// makes 1,000 connections a second, or as many as the machine has room for.
func TestR12_UpgradesLoseNoConnection(t *testing.T) {
	t.Parallel()
	upgrades, rate, between := 3, 150, int64(15)
	if testbed.Long() {
		upgrades, rate, between = 30, 1000, 1000
	}
	nginx := testbed.NewNginx(t) // an application that costs little
	if err := os.WriteFile(filepath.Join(nginx.Root, "upgrade"), []byte("here\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l := &lone{app: testbed.App{ID: webID, Name: "web", Upstream: nginx.URL(false), Extra: "    timeouts: {connect: 15s, answer: 15s}\n"}} // it has what the load leaves of the processors
	l.Lone = testbed.NewLone(t, testbed.LoneConfig{Apps: []testbed.App{l.app}, Grants: loneGrants()})
	const atOnce = 128
	cert, key := testbed.CertificatePEM(t, l.Client(alice, aliceDevice))
	load := testbed.NewConnector(t, testbed.ConnectorConfig{
		Address: testbed.Loopback(false, l.Port), Host: l.app.Host(), Port: l.Port, Path: "/upgrade", Rate: rate, AtOnce: atOnce, FullEvery: 50,
		Roots: l.CA.RootPEM(keystore.TLSRoot), Cert: cert, Key: key, Sources: 64,
	})
	served := func(more int64) {
		t.Helper()
		for from := load.Next().Good; load.Next().Good < from+more; {
		}
	}
	old, cpu := l.Process, time.Duration(0)
	for i := range upgrades {
		served(between)
		next := l.upgrade(t)
		if code, err := old.Wait(within(t, time.Minute)); err != nil || code != 0 {
			t.Fatalf("upgrade %d: the old process ended with %d, %v\n%s", i, code, err, old.Output())
		}
		if !next.Running() {
			t.Fatalf("upgrade %d: the new process has ended\n%s", i, next.Output())
		}
		if n := load.Next(); n.Failed > 0 {
			t.Fatalf("upgrade %d: %d connections failed, first %s", i, n.Failed, n.First)
		}
		cpu += old.CPU()
		old = next
	}
	served(between)
	n := load.Stop()
	ids := map[string]bool{}
	for deadline := time.Now().Add(time.Minute); len(ids) < int(n.Good); {
		for _, r := range l.Audit.Find(t, func(r *audit.Record) bool { return r.Path == "/upgrade" && r.RequestID != "" }) {
			ids[r.RequestID] = true
		}
		if len(ids) < int(n.Good) {
			if time.Now().After(deadline) {
				t.Fatalf("%d requests have an audit record, want %d", len(ids), n.Good)
			}
			time.Sleep(250 * time.Millisecond)
		}
	}
	if err := old.Stop(); err != nil {
		t.Errorf("the last process: %v", err)
	}
	cpu += old.CPU()
	per := func(d time.Duration) time.Duration {
		return (d / time.Duration(max(n.Good, 1))).Round(time.Microsecond)
	}
	t.Logf("%d upgrades, %d connections in %v = %.0f/s of %d asked for (%d not begun: %d at once), %d resumed, %d failed, the slowest took %v; CPU a connection: gateway %v (starts included), client %v",
		upgrades, n.Good, n.Took.Round(time.Millisecond), float64(n.Good)/n.Took.Seconds(), rate, n.Late, atOnce, n.Resumed, n.Failed, n.Slowest, per(cpu), per(n.CPU))
	if n.Failed > 0 {
		t.Errorf("%d connections failed, first %s", n.Failed, n.First)
	}
}

// rawWebSocket is a connection to an application, as it is on the wire.
type rawWebSocket struct {
	t  testing.TB
	c  *tls.Conn
	in *bufio.Reader
}

func (l *lone) webSocket(t testing.TB, a testbed.App, cert *tls.Certificate) *rawWebSocket {
	t.Helper()
	c, err := l.Dial(t.Context(), false, l.TLS(a.Host(), cert, "http/1.1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s:%d\r\nOrigin: https://%s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", a.Host(), l.Port, a.Host())
	w := &rawWebSocket{t, c, bufio.NewReader(c)}
	res, err := http.ReadResponse(w.in, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("WebSocket: %v %v", res, err)
	}
	w.echo()
	return w
}

// echo sends a text and wants it back.
func (w *rawWebSocket) echo() {
	w.t.Helper()
	if _, err := w.c.Write([]byte{0x81, 0x84, 0, 0, 0, 0, 'p', 'i', 'n', 'g'}); err != nil {
		w.t.Fatalf("WebSocket: %v", err)
	}
	if op, b, err := w.frame(); err != nil || string(b) != "ping" {
		w.t.Fatalf("WebSocket: echo is %x %q, %v", op, b, err)
	}
}

func (w *rawWebSocket) frame() (op byte, payload []byte, err error) {
	_ = w.c.SetReadDeadline(time.Now().Add(20 * time.Second)) // a socket takes any
	var h [2]byte
	if _, err = io.ReadFull(w.in, h[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, h[1]&0x7f)
	_, err = io.ReadFull(w.in, payload)
	return h[0] & 0xf, payload, err
}

// closed wants a close frame with code 1008 and a reason.
func (w *rawWebSocket) closed(why string) {
	w.t.Helper()
	op, b, err := w.frame()
	if err != nil || op != 8 || len(b) < 2 || binary.BigEndian.Uint16(b) != 1008 || !strings.Contains(string(b[2:]), why) {
		w.t.Errorf("WebSocket: frame %d %q, %v, want a close for %q", op, b, err, why)
	}
}

// A WebSocket that the old process of an upgrade goes on serving ends with its
// right: the person hears why, as fast as in the new one.
func TestR12_AWebSocketOfTheOldProcessEndsWithItsRight(t *testing.T) {
	t.Parallel()
	l := newLone(t, "")
	cert := l.Client(alice, aliceDevice)
	grant := func(version uint64, apps ...string) {
		t.Helper()
		l.PutGrants(l.Grants(version, testbed.NewGrant(alice, aliceDevice, aliceToken, apps...)))
		if err := l.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	grant(2, l.app.ID, l.other.ID)
	one, other := l.webSocket(t, l.app, cert), l.webSocket(t, l.other, cert)
	old := l.Process
	before, err := l.Status()
	if err != nil {
		t.Fatal(err)
	}
	next := l.upgrade(t)
	testbed.Eventually(t, 30*time.Second, "the new process does not answer", func() bool {
		st, err := l.Status()
		return err == nil && next.Running() && st.Started.After(before.Started) // until then the old one answers
	})
	one.echo()
	other.echo()
	if !old.Running() {
		t.Fatal("the old process has ended")
	}
	grant(3, l.other.ID)
	start := time.Now()
	one.closed("the grant was withdrawn")
	t.Logf("by a list: closed %v after the reload's answer", time.Since(start))
	other.echo()
	if err := l.Admin.Do(t.Context(), http.MethodPost, "/sessions/cut", map[string]string{"user_id": alice}, nil); err != nil {
		t.Fatal(err)
	}
	other.closed("closed by an operator")
	if code, err := old.Wait(within(t, 20*time.Second)); err != nil || code != 0 {
		t.Errorf("the old process ended with %d, %v\n%s", code, err, old.Output())
	}
}
