package interop

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
	"github.com/tjfoc/gmsm/gmtls"
	tjx509 "github.com/tjfoc/gmsm/x509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// gmtls of github.com/tjfoc/gmsm speaks ECC_SM4_CBC_SM3 only. Its default
// suites hold one whose code panics, so CipherSuites is always set; its server
// panics when it resumes by ticket, so that is never tried; its client wants
// every certificate of the server's list to have the server's name, so there
// are no intermediates here.

// party is one side's material, for both stacks.
type party struct {
	pair              *tlcp.Pair
	signCert, encCert gmtls.Certificate
	bothCert          gmtls.Certificate // both in one list, with the signing key
}

type site struct {
	ca             *lab.CA
	roots          *smx509.CertPool
	peerRoots      *tjx509.CertPool
	server, client *party
}

func newSite(t *testing.T) *site {
	t.Helper()
	ca, err := lab.New(lab.Config{Iterations: 1})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{ca: ca, roots: smx509.NewCertPool(), peerRoots: tjx509.NewCertPool()}
	root := ca.RootPEM(keystore.TLCPRoot)
	if !s.roots.AppendCertsFromPEM(root) || !s.peerRoots.AppendCertsFromPEM(root) {
		t.Fatal("the root was not taken")
	}
	hosts := []string{"gw.example.org", "127.0.0.1", "::1"}
	s.server = newParty(t, ca, certid.Identity{Gateway: "GW000000001", Device: "DEV00000001"}, hosts)
	s.client = newParty(t, ca, certid.Identity{Agent: "AGT00000001", Device: "DEV00000002"}, nil)
	return s
}

func newParty(t *testing.T, ca *lab.CA, id certid.Identity, hosts []string) *party {
	t.Helper()
	store, err := ca.Party(t.TempDir()+"/keys", []byte("x"), id, hosts)
	if err != nil {
		t.Fatal(err)
	}
	p := new(party)
	if p.pair, err = store.TLCPPair(); err != nil {
		t.Fatal(err)
	}
	read := func(name string) (cert, key []byte) {
		chain, err := store.Chain(name)
		if err != nil {
			t.Fatal(err)
		}
		k, err := store.Signer(name)
		if err != nil {
			t.Fatal(err)
		}
		der, err := smx509.MarshalPKCS8PrivateKey(k.(*sm2.PrivateKey))
		if err != nil {
			t.Fatal(err)
		}
		return keystore.EncodeChain(chain...), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	signPEM, signKey := read(keystore.TLCPSign)
	encPEM, encKey := read(keystore.TLCPEnc)
	var e1, e2 error
	p.signCert, e1 = gmtls.X509KeyPair(signPEM, signKey)
	p.encCert, e2 = gmtls.X509KeyPair(encPEM, encKey)
	if err := errors.Join(e1, e2); err != nil {
		t.Fatal(err)
	}
	p.bothCert = gmtls.Certificate{
		Certificate: [][]byte{p.signCert.Certificate[0], p.encCert.Certificate[0]}, PrivateKey: p.signCert.PrivateKey,
	}
	return p
}

func (s *site) peerConfig() *gmtls.Config {
	return &gmtls.Config{
		GMSupport: &gmtls.GMSupport{}, CipherSuites: []uint16{tlcp.ECC_SM4_CBC_SM3}, SessionTicketsDisabled: true,
		RootCAs: s.peerRoots, ClientCAs: s.peerRoots, ServerName: "gw.example.org",
	}
}

// transports returns both ends of a TCP connection on the loopback.
func transports(t *testing.T, network string) (server, client net.Conn) {
	t.Helper()
	addr := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"}[network]
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
	for _, c := range []net.Conn{server, client} {
		if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	return server, client
}

// echo lets server return what client sends, and compares it.
func echo(t *testing.T, server, client net.Conn) {
	t.Helper()
	for _, size := range []int{1, 2, 255, 16384, 100_000} {
		data := bytes.Repeat([]byte{byte(size), 0xa5}, size/2+1)[:size]
		done := make(chan error, 2)
		go func() {
			b := make([]byte, size)
			_, err := io.ReadFull(server, b)
			if err == nil {
				_, err = server.Write(b)
			}
			done <- err
		}()
		go func() {
			_, err := client.Write(data)
			done <- err
		}()
		got := make([]byte, size)
		_, err := io.ReadFull(client, got)
		if err = errors.Join(err, <-done, <-done); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("%d bytes: other bytes came back", size)
		}
	}
}

func TestTLCPServerWithGmtlsClient(t *testing.T) {
	s := newSite(t)
	for _, network := range []string{"tcp4", "tcp6"} {
		for _, mutual := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/mutual=%v", network, mutual), func(t *testing.T) {
				a, b := transports(t, network)
				config := &tlcp.Config{Certificates: []*tlcp.Pair{s.server.pair}}
				peer := s.peerConfig()
				if mutual {
					config.ClientAuth, config.ClientCAs = tlcp.RequireAndVerifyClientCert, s.roots
					config.VerifyConnection = func(st tlcp.ConnectionState) error {
						if st.PeerEnc == nil || st.PeerEnc.Equal(st.PeerSign) {
							return errors.New("the client's encryption certificate was not found")
						}
						return nil
					}
					peer.Certificates = []gmtls.Certificate{s.client.bothCert}
				}
				server, client := tlcp.Server(a, config), gmtls.Client(b, peer)
				echo(t, server, client)
				st := server.ConnectionState()
				if st.CipherSuite != tlcp.ECC_SM4_CBC_SM3 {
					t.Errorf("suite %04x", st.CipherSuite)
				}
				if mutual {
					if id, err := certid.OfSM(st.PeerSign); err != nil || id.Device != "DEV00000002" {
						t.Errorf("identity of the client: %+v, %v", id, err)
					}
				}
				client.Close()
				if n, err := server.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Errorf("after the client's Close: %d, %v", n, err)
				}
			})
		}
	}
}

func TestTLCPServerRefusesGmtlsClientWithoutCertificate(t *testing.T) {
	s := newSite(t)
	a, b := transports(t, "tcp4")
	server := tlcp.Server(a, &tlcp.Config{Certificates: []*tlcp.Pair{s.server.pair}, ClientAuth: tlcp.RequireAndVerifyClientCert, ClientCAs: s.roots})
	client := gmtls.Client(b, s.peerConfig())
	done := make(chan error, 1)
	go func() { done <- client.Handshake() }()
	if err := server.Handshake(); !errors.Is(err, tlcp.ErrNoClientCertificate) {
		t.Errorf("server: got %v, want ErrNoClientCertificate", err)
	}
	if err := <-done; err == nil {
		t.Error("the client did not learn of the refusal")
	}
}

// TestTLCPServerResumesGmtlsClientByTicket: its client holds tickets well, only
// its server does not.
func TestTLCPServerResumesGmtlsClientByTicket(t *testing.T) {
	s := newSite(t)
	config := &tlcp.Config{Certificates: []*tlcp.Pair{s.server.pair}, TicketKeys: [][]byte{bytes.Repeat([]byte{7}, 16)}}
	peer := s.peerConfig()
	peer.SessionTicketsDisabled, peer.ClientSessionCache = false, gmtls.NewLRUClientSessionCache(4)
	for round := range 3 {
		a, b := transports(t, "tcp4")
		server, client := tlcp.Server(a, config), gmtls.Client(b, peer)
		echo(t, server, client)
		if got, want := server.ConnectionState().DidResume, round > 0; got != want {
			t.Errorf("round %d: server: resumed %v, want %v", round, got, want)
		}
		if got, want := client.ConnectionState().DidResume, round > 0; got != want {
			t.Errorf("round %d: client: resumed %v, want %v", round, got, want)
		}
		client.Close()
		server.Close()
	}
}

func TestTLCPClientWithGmtlsServer(t *testing.T) {
	s := newSite(t)
	for _, network := range []string{"tcp4", "tcp6"} {
		for _, mutual := range []bool{false, true} {
			for _, bare := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/mutual=%v/bare=%v", network, mutual, bare), func(t *testing.T) {
					a, b := transports(t, network)
					peer := s.peerConfig()
					peer.Certificates = []gmtls.Certificate{s.server.signCert, s.server.encCert}
					config := &tlcp.Config{RootCAs: s.roots, ServerName: "gw.example.org", NoExtensions: bare}
					if mutual {
						peer.ClientAuth = gmtls.RequireAndVerifyClientCert
						config.Certificates = []*tlcp.Pair{s.client.pair}
					}
					server, client := gmtls.Server(a, peer), tlcp.Client(b, config)
					echo(t, server, client)
					st := client.ConnectionState()
					if st.CipherSuite != tlcp.ECC_SM4_CBC_SM3 || !st.PeerSign.Equal(s.server.pair.SignLeaf()) {
						t.Errorf("suite %04x, peer %v", st.CipherSuite, st.PeerSign.Subject)
					}
					if got := len(server.ConnectionState().PeerCertificates); mutual && got == 0 {
						t.Error("the server saw no certificate")
					}
					server.Close()
					if n, err := client.Read(make([]byte, 1)); n != 0 || err != io.EOF || !client.CloseNotified() {
						t.Errorf("after the server's Close: %d, %v, notified %v", n, err, client.CloseNotified())
					}
				})
			}
		}
	}
}

func TestTLCPClientRefusesGmtlsServerOfAnotherName(t *testing.T) {
	s := newSite(t)
	a, b := transports(t, "tcp4")
	peer := s.peerConfig()
	peer.Certificates = []gmtls.Certificate{s.server.signCert, s.server.encCert}
	server := gmtls.Server(a, peer)
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	err := tlcp.Client(b, &tlcp.Config{RootCAs: s.roots, ServerName: "other.example.org"}).Handshake()
	var hostname smx509.HostnameError
	if !errors.As(err, &hostname) {
		t.Errorf("client: got %v, want a HostnameError", err)
	}
	if err := <-done; err == nil {
		t.Error("the server did not learn of the refusal")
	}
}
