package tlcp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/certid"
)

func testRand(testing.TB) io.Reader { return rand.Reader }

var allSuites = []uint16{ECC_SM4_GCM_SM3, ECC_SM4_CBC_SM3, ECDHE_SM4_GCM_SM3, ECDHE_SM4_CBC_SM3}

func isECDHE(suite uint16) bool { return suiteByID(suite).ecdhe }

// socketPair returns two ends of a TCP connection on the loopback.
func socketPair(t testing.TB, network string) (server, client net.Conn) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "tcp6" {
		addr = "[::1]:0"
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial(network, ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	limit := time.Now().Add(30 * time.Second)
	for _, c := range []net.Conn{server, client} {
		if err := c.SetDeadline(limit); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	return server, client
}

// handshake runs both sides over a socket and returns their errors.
func handshake(t testing.TB, network string, server, client *Config) (s, c *Conn, serverErr, clientErr error) {
	t.Helper()
	a, b := socketPair(t, network)
	s, c = Server(a, server), Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err != nil {
			a.(*net.TCPConn).CloseWrite()
		}
		done <- err
	}()
	clientErr = c.Handshake()
	if clientErr != nil {
		b.(*net.TCPConn).CloseWrite()
	}
	serverErr = <-done
	return s, c, serverErr, clientErr
}

func mustHandshake(t testing.TB, network string, server, client *Config) (s, c *Conn) {
	t.Helper()
	s, c, serverErr, clientErr := handshake(t, network, server, client)
	if serverErr != nil || clientErr != nil {
		t.Fatalf("handshake: server %v, client %v", serverErr, clientErr)
	}
	return s, c
}

// exchange sends size bytes each way at the same time and compares them.
func exchange(t testing.TB, s, c *Conn, size int) {
	t.Helper()
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * 7)
	}
	errs := make(chan error, 4)
	for _, conn := range []*Conn{s, c} {
		go func() {
			_, err := conn.Write(data)
			errs <- err
		}()
		go func() {
			got := make([]byte, size)
			_, err := io.ReadFull(conn, got)
			if err == nil && string(got) != string(data) {
				err = errors.New("other bytes came than were sent")
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}

func TestSelfInterop(t *testing.T) {
	site := newSite(t)
	for _, network := range []string{"tcp4", "tcp6"} {
		for _, suite := range allSuites {
			for _, mutual := range []bool{false, true} {
				if isECDHE(suite) && !mutual {
					continue
				}
				for _, extras := range []bool{false, true} {
					for _, resume := range []string{"", "id", "ticket"} {
						name := fmt.Sprintf("%s/%s/mutual=%v/extras=%v/resume=%s", network, CipherSuiteName(suite), mutual, extras, resume)
						t.Run(name, func(t *testing.T) {
							server, client := site.configs(suite, mutual)
							if extras {
								server.NextProtos = []string{"h2", "http/1.1"}
								client.NextProtos = []string{"yumen/1", "http/1.1", "h2"}
							} else {
								client.NoExtensions = resume != "ticket"
								client.ServerName = "127.0.0.1"
							}
							switch resume {
							case "id":
								server.SessionCache = NewLRUSessionCache(4)
								client.SessionCache = NewLRUSessionCache(4)
							case "ticket":
								server.TicketKeys = [][]byte{make([]byte, 16)}
								client.SessionCache, client.OfferTickets = NewLRUSessionCache(4), true
							}
							rounds := 1
							if resume != "" {
								rounds = 3
							}
							seen := 0
							server.VerifyConnection = func(st ConnectionState) error {
								seen++
								if mutual && (!st.PeerSign.Equal(site.client.signLeaf) || !st.PeerEnc.Equal(site.client.encLeaf) || len(st.PeerCertificates) != 3 || len(st.VerifiedChain) != 3) {
									t.Errorf("VerifyConnection: peer %v, %v, %d certificates, chain of %d", st.PeerSign, st.PeerEnc, len(st.PeerCertificates), len(st.VerifiedChain))
								}
								return nil
							}
							for round := range rounds {
								s, c := mustHandshake(t, network, server, client)
								exchange(t, s, c, 20_000)
								checkStates(t, site, s, c, suite, mutual, extras, round > 0)
								closeBoth(t, s, c)
							}
							if seen != rounds {
								t.Errorf("VerifyConnection was asked %d times in %d handshakes", seen, rounds)
							}
						})
					}
				}
			}
		}
	}
}

func checkStates(t *testing.T, site *site, s, c *Conn, suite uint16, mutual, extras, resumed bool) {
	t.Helper()
	for who, st := range map[string]ConnectionState{"server": s.ConnectionState(), "client": c.ConnectionState()} {
		if !st.HandshakeComplete || st.Version != Version || st.CipherSuite != suite || st.DidResume != resumed {
			t.Errorf("%s: got complete %v, version %04x, suite %04x, resumed %v; want suite %04x, resumed %v",
				who, st.HandshakeComplete, st.Version, st.CipherSuite, st.DidResume, suite, resumed)
		}
		want := ""
		if extras {
			want = "h2"
		}
		if st.NegotiatedProtocol != want {
			t.Errorf("%s: protocol %q, want %q", who, st.NegotiatedProtocol, want)
		}
	}
	if got := c.ConnectionState().PeerSign; !got.Equal(site.server.signLeaf) {
		t.Errorf("client: peer %v", got.Subject)
	}
	st := s.ConnectionState()
	wantName := ""
	if extras {
		wantName = "gw.example.org"
	}
	if st.ServerName != wantName {
		t.Errorf("server: name %q, want %q", st.ServerName, wantName)
	}
	if !mutual {
		if st.PeerSign != nil {
			t.Error("server: a peer without its certificate")
		}
		return
	}
	if !st.PeerSign.Equal(site.client.signLeaf) || st.PeerEnc != nil || st.PeerCertificates != nil || st.VerifiedChain != nil {
		t.Errorf("server: peer %v; keeps %v, %d certificates, a chain of %d", st.PeerSign, st.PeerEnc, len(st.PeerCertificates), len(st.VerifiedChain))
	}
	id, err := certid.OfSM(st.PeerSign)
	if err != nil || id.Device != "DEV00000001" {
		t.Errorf("server: identity %+v, %v", id, err)
	}
}

// closeBoth closes both ends and checks that each tells the other.
func closeBoth(t *testing.T, s, c *Conn) {
	t.Helper()
	if err := s.CloseWrite(); err != nil {
		t.Errorf("CloseWrite: %v", err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF || !c.CloseNotified() {
		t.Errorf("Read after the peer's CloseWrite: %d, %v, notified %v", n, err, c.CloseNotified())
	}
	if _, err := c.Write([]byte("still")); err != nil {
		t.Errorf("Write after the peer's CloseWrite: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if b, err := io.ReadAll(s); err != nil || string(b) != "still" || !s.CloseNotified() {
		t.Errorf("ReadAll: %q, %v", b, err)
	}
	if _, err := s.Write([]byte("x")); err == nil {
		t.Error("Write after CloseWrite succeeded")
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := s.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

func TestDialAndListen(t *testing.T) {
	site := newSite(t)
	server, client := site.configs(ECC_SM4_GCM_SM3, false)
	client.ServerName = ""
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := Listen("tcp", addr, server)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			c, err := ln.Accept()
			if err == nil {
				_, err = io.Copy(c, c)
				c.Close()
			}
			done <- err
		}()
		c, err := Dial(context.Background(), "tcp", ln.Addr().String(), client)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
			t.Errorf("echo: %q, %v", b, err)
		}
		c.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		ln.Close()
	}
	if _, err := Listen("tcp", "127.0.0.1:0", &Config{}); err == nil {
		t.Error("Listen took a Config without certificates")
	}
	if _, err := Dial(context.Background(), "tcp", "127.0.0.1:1", nil); err == nil {
		t.Error("Dial took no Config")
	}
}
