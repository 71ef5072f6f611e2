package listen

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/quic-go/quic-go"

	"github.com/yumen-zt/yumen/internal/reason"
)

// startQUIC serves a UDP port whose handler answers the first stream with "ALPN
// SNI peer" and waits for the client to close.
func startQUIC(t *testing.T, limits Limits) *fixture {
	t.Helper()
	f := &fixture{ca: newAuthority(t), audit: &recorder{}, reg: prometheus.NewRegistry()}
	site := Bounded(f.ca.issue(t, time.Now().Add(time.Hour), "app.example", "secret.example"))
	answer := func(ctx context.Context, c *Conn) {
		defer c.Reset()
		defer context.AfterFunc(ctx, c.Reset)()
		s, err := c.QUIC.AcceptStream(ctx)
		if err != nil {
			return
		}
		peer := "-"
		if c.Peer != nil {
			peer = c.Peer.Subject.CommonName
		}
		_, _ = io.WriteString(s, c.ALPN+" "+c.SNI+" "+peer)
		_ = s.Close()
		<-c.QUIC.Context().Done()
	}
	port, err := New(Config{
		Handlers: map[string]Handler{HTTP1: answer, HTTP3: answer, Tunnel: answer},
		Faces: &Faces{
			Certificate: func(string) (*tls.Certificate, error) { return &site, nil },
			Demand:      func(name string) bool { return name == "secret.example" },
			ClientRoots: f.ca.pool(),
		},
		Limits: limits, Drain: time.Second, Audit: f.audit, Registerer: f.reg, QUIC: QUIC{ResetKey: new([32]byte)},
	})
	if err != nil {
		t.Fatal(err)
	}
	pc, err := ListenPackets(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := port.AddPackets(pc); err != nil {
		t.Fatal(err)
	}
	f.run(t, port, "127.0.0.1:0")
	f.address = pc.LocalAddr().String()
	return f
}

// ask dials, opens a stream and returns the answer.
func (f *fixture) ask(t *testing.T, cfg *tls.Config) (*quic.Conn, string, error) {
	t.Helper()
	cfg.RootCAs = f.ca.pool()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	q, err := quic.DialAddr(ctx, f.address, cfg, nil)
	if err != nil {
		return nil, "", err
	}
	t.Cleanup(func() { _ = q.CloseWithError(0, "") })
	s, err := q.OpenStream()
	if err != nil {
		return q, "", err
	}
	_, _ = s.Write([]byte("?"))
	_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(s)
	return q, string(b), err
}

// ALPN tells HTTP/3 from the tunnel on one socket; the faces are those of TCP.
func TestQUICRoutesByALPNAndFace(t *testing.T) {
	f := startQUIC(t, Limits{})
	device := f.ca.issue(t, time.Now().Add(time.Hour), "device")
	old := f.ca.issue(t, time.Now().Add(-time.Minute), "device")
	foreign := newAuthority(t).issue(t, time.Now().Add(time.Hour), "device")
	for _, c := range []struct {
		name, sni, alpn string
		cert            *tls.Certificate
		want            string
		why             reason.Reason
	}{
		{"browser", "app.example", HTTP3, nil, "h3 app.example -", 0},
		{"browser with a certificate that nobody asks for", "app.example", HTTP3, &device, "h3 app.example -", 0},
		{"device", "secret.example", HTTP3, &device, "h3 secret.example device", 0},
		{"tunnel", "app.example", Tunnel, &device, "yumen/1 app.example device", 0},
		{"browser where a device is demanded", "secret.example", HTTP3, nil, "", reason.ClientCertAbsent},
		{"tunnel without a certificate", "app.example", Tunnel, nil, "", reason.ClientCertAbsent},
		{"old certificate", "secret.example", HTTP3, &old, "", reason.ClientCertGone},
		{"foreign certificate", "app.example", Tunnel, &foreign, "", reason.ClientCertIssuer},
		{"unknown protocol", "app.example", "hq-interop", nil, "", reason.ALPNRefused},
	} {
		cfg := &tls.Config{ServerName: c.sni, NextProtos: []string{c.alpn}}
		if c.cert != nil { // whatever the server says of issuers
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.cert, nil }
		}
		q, got, err := f.ask(t, cfg)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v, want %q", c.name, got, err, c.want)
		}
		if c.why == 0 {
			continue
		}
		if q != nil {
			<-q.Context().Done() // the client may think that it is connected before the server has judged
		}
		want := reason.Reason(0)
		for end := time.Now().Add(5 * time.Second); want != c.why && time.Now().Before(end); time.Sleep(time.Millisecond) {
			f.audit.mu.Lock()
			for _, r := range f.audit.records {
				if r.Code == c.why && r.Protocol == "tls1.3" {
					want = r.Code
				}
			}
			f.audit.mu.Unlock()
		}
		if want != c.why {
			t.Errorf("%s: no record of %v in %+v", c.name, c.why, f.audit.records)
		}
	}
}

// A flood of first packets takes no more memory than it may; strangers must
// prove their address by a Retry then, and who does so is served.
func TestS21_S22_QUICFloodIsBoundedAndRetryServesTheOthers(t *testing.T) {
	f := startQUIC(t, Limits{HalfOpen: 16, Handshake: 10 * time.Second})
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	to, _ := net.ResolveUDPAddr("udp", f.address)
	// First packets of clients that never go on: real ones, caught on their way.
	catch := &catcher{PacketConn: pc, first: make(chan []byte, 256)}
	for range 40 {
		func() {
			tr := &quic.Transport{Conn: catch}
			defer tr.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			_, _ = tr.Dial(ctx, to, &tls.Config{ServerName: "app.example", NextProtos: []string{HTTP3}, InsecureSkipVerify: true}, nil)
		}()
	}
	close(catch.first)
	n := 0
	flood, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer flood.Close()
	for b := range catch.first {
		if _, err := flood.WriteTo(b, to); err != nil {
			t.Fatal(err)
		}
		n++
	}
	half := func() int {
		n, _ := f.port.packets[0].half.size()
		return n
	}
	_, got, err := f.ask(t, &tls.Config{ServerName: "app.example", NextProtos: []string{HTTP3}})
	if err != nil || got != "h3 app.example -" {
		t.Errorf("a client in the flood: %q, %v", got, err)
	}
	if half() == 0 || half() > 16 {
		t.Errorf("%d half-open of %d first packets", half(), n)
	}
	if r := testutil.ToFloat64(f.port.metrics.retries); r == 0 {
		t.Error("nobody was asked to prove an address")
	}
	t.Logf("%d first packets: %d half-open, %.0f Retries", n, half(), testutil.ToFloat64(f.port.metrics.retries))
	// What came back to the flood's address is below three times of what it sent.
	_ = flood.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	back, buf := 0, make([]byte, 2048)
	for {
		m, _, err := flood.ReadFrom(buf)
		if err != nil {
			break
		}
		back += m
	}
	if back > 3*1280*n {
		t.Errorf("%d bytes came back for %d packets", back, n)
	}
}

// catcher keeps what a client would send.
type catcher struct {
	net.PacketConn
	first chan []byte
}

func (c *catcher) WriteTo(b []byte, _ net.Addr) (int, error) {
	select {
	case c.first <- bytes.Clone(b):
	default:
	}
	return len(b), nil
}

// Bytes that are no QUIC get no answer.
func TestQUICIgnoresNoise(t *testing.T) {
	f := startQUIC(t, Limits{})
	c, err := net.Dial("udp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for n := range 64 {
		b := make([]byte, 20*n)
		_, _ = rand.Read(b)
		if n > 0 {
			b[0] &^= 0x80 // neither a version that is negotiated nor a reset
		}
		_, _ = c.Write(b)
	}
	if _, got, err := f.ask(t, &tls.Config{ServerName: "app.example", NextProtos: []string{HTTP3}}); err != nil || got != "h3 app.example -" {
		t.Errorf("behind the noise: %q, %v", got, err)
	}
}

// A client of a process that died learns from the next one at once that its
// connection is gone: the key of resets is the same.
func TestQUICResetsConnectionsOfTheProcessBefore(t *testing.T) {
	f := startQUIC(t, Limits{})
	q, got, err := f.ask(t, &tls.Config{ServerName: "app.example", NextProtos: []string{HTTP3}})
	if err != nil || got != "h3 app.example -" {
		t.Fatal(got, err)
	}
	dead := f.port.packets[0]
	_ = dead.tr.Close() // says nothing to anybody
	_ = dead.pc.Close()
	pc, err := ListenPackets(t.Context(), f.address)
	if err != nil {
		t.Fatal(err)
	}
	next, err := New(Config{Handlers: f.port.cfg.Handlers, Faces: f.port.faces.Load(), Drain: time.Second, QUIC: f.port.cfg.QUIC})
	if err != nil {
		t.Fatal(err)
	}
	if err := next.AddPackets(pc); err != nil {
		t.Fatal(err)
	}
	(&fixture{}).run(t, next, "127.0.0.1:0")
	start := time.Now()
	if s, err := q.OpenStream(); err == nil {
		_, _ = s.Write(make([]byte, 100))
	}
	select {
	case <-q.Context().Done():
		if err := context.Cause(q.Context()); !errors.As(err, new(*quic.StatelessResetError)) {
			t.Errorf("ended by %v", err)
		}
		t.Logf("noticed after %v", time.Since(start))
	case <-time.After(5 * time.Second):
		t.Error("the client waits")
	}
}
