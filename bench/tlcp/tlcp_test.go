// Package tlcp measures our TLCP against crypto/tls with P-256, and its bulk
// speed against the same cipher without a protocol. Run it with
//
//	go test -run='^$' -bench=. -benchtime=2s ./bench/tlcp
//
// Both sides of a ratio run in turns within one benchmark. CPU time is that of
// the server's thread, which its goroutine is locked to; garbage collection on
// other threads is not in it.
package tlcp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/sm4gcm"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

const host = "gw.example.org"

// threadCPU returns the CPU time of the calling thread.
func threadCPU(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func sockets(b *testing.B) (server, client net.Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		b.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		b.Fatal(err)
	}
	return server, client
}

type handshaker interface{ HandshakeContext(context.Context) error }

// serverCost runs one handshake and returns the CPU time of the server's side.
func serverCost(b *testing.B, server, client func(net.Conn) handshaker) time.Duration {
	s, c := sockets(b)
	defer s.Close()
	defer c.Close()
	done := make(chan error, 1)
	go func() { done <- client(c).HandshakeContext(context.Background()) }()
	from := threadCPU(b)
	if err := server(s).HandshakeContext(context.Background()); err != nil {
		b.Fatal(err)
	}
	cost := threadCPU(b) - from
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	return cost
}

func tlsConfigs(b *testing.B) (server, client *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		b.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	p256 := []tls.CurveID{tls.CurveP256}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}}, MinVersion: tls.VersionTLS13, CurvePreferences: p256, SessionTicketsDisabled: true},
		&tls.Config{RootCAs: pool, ServerName: host, MinVersion: tls.VersionTLS13, CurvePreferences: p256}
}

type material struct {
	roots          *smx509.CertPool
	server, client *tlcp.Pair
}

func newMaterial(b *testing.B) material {
	ca, err := lab.New(lab.Config{Iterations: 1})
	if err != nil {
		b.Fatal(err)
	}
	m := material{roots: smx509.NewCertPool()}
	m.roots.AppendCertsFromPEM(ca.RootPEM(keystore.TLCPRoot))
	pair := func(id certid.Identity) *tlcp.Pair {
		store, err := ca.Party(b.TempDir()+"/keys", []byte("x"), id, []string{host})
		if err != nil {
			b.Fatal(err)
		}
		p, err := store.TLCPPair()
		if err != nil {
			b.Fatal(err)
		}
		return p
	}
	m.server, m.client = pair(certid.Identity{Gateway: "GW000000001"}), pair(certid.Identity{Agent: "AGT00000001"})
	return m
}

func (m material) configs(suite uint16, mutual bool) (server, client *tlcp.Config) {
	server = &tlcp.Config{Certificates: []*tlcp.Pair{m.server}, CipherSuites: []uint16{suite}}
	client = &tlcp.Config{RootCAs: m.roots, ServerName: host, CipherSuites: []uint16{suite}}
	if mutual {
		server.ClientAuth, server.ClientCAs = tlcp.RequireAndVerifyClientCert, m.roots
		client.Certificates = []*tlcp.Pair{m.client}
	}
	return server, client
}

// BenchmarkHandshake compares the server's CPU time of full handshakes, and of
// resumed ones, with that of TLS 1.3 on P-256.
func BenchmarkHandshake(b *testing.B) {
	m := newMaterial(b)
	tlsServer, tlsClient := tlsConfigs(b)
	run := func(name string, suite uint16, mutual, resume bool) {
		b.Run(name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			server, client := m.configs(suite, mutual)
			if resume {
				server.SessionCache, client.SessionCache = tlcp.NewLRUSessionCache(16), tlcp.NewLRUSessionCache(16)
			}
			var ours, theirs []time.Duration
			for b.Loop() {
				ours = append(ours, serverCost(b,
					func(c net.Conn) handshaker { return tlcp.Server(c, server) },
					func(c net.Conn) handshaker { return tlcp.Client(c, client) }))
				theirs = append(theirs, serverCost(b,
					func(c net.Conn) handshaker { return tls.Server(c, tlsServer) },
					func(c net.Conn) handshaker { return tls.Client(c, tlsClient) }))
			}
			a, t := median(ours), median(theirs)
			b.ReportMetric(a, "tlcp-µs")
			b.ReportMetric(t, "tls13-µs")
			b.ReportMetric(a/t, "ratio")
		})
	}
	run("E053", tlcp.ECC_SM4_GCM_SM3, false, false)
	run("E053-mutual", tlcp.ECC_SM4_GCM_SM3, true, false)
	run("E051-mutual", tlcp.ECDHE_SM4_GCM_SM3, true, false)
	run("E053-resumed", tlcp.ECC_SM4_GCM_SM3, false, true)
}

func median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Nanoseconds()) / 1000
}

// bareGCM is the cipher of E053 over a transport with a length before each
// record, and nothing else.
type bareGCM struct {
	net.Conn
	seal, open func(dst, nonce, text, aad []byte) []byte
	buf, nonce []byte
}

func newBare(b *testing.B, c net.Conn) *bareGCM {
	aead, err := sm4gcm.New(make([]byte, sm4gcm.KeySize))
	if err != nil {
		b.Fatal(err)
	}
	return &bareGCM{Conn: c, seal: aead.Seal, buf: make([]byte, 32<<10), nonce: make([]byte, sm4gcm.NonceSize), open: func(dst, nonce, text, aad []byte) []byte {
		out, err := aead.Open(dst, nonce, text, aad)
		if err != nil {
			b.Error(err)
		}
		return out
	}}
}

func (g *bareGCM) Write(p []byte) (int, error) {
	out := g.seal(g.buf[:4], g.nonce, p, nil)
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	_, err := g.Conn.Write(out)
	return len(p), err
}

func (g *bareGCM) Read(p []byte) (int, error) {
	if _, err := io.ReadFull(g.Conn, g.buf[:4]); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(g.buf)
	if _, err := io.ReadFull(g.Conn, g.buf[4:4+n]); err != nil {
		return 0, err
	}
	return copy(p, g.open(g.buf[4:4], g.nonce, g.buf[4:4+n], nil)), nil
}

// transfer sends size bytes in pieces of 16 KiB and returns the CPU time of the
// sender's and of the receiver's thread.
func transfer(b *testing.B, from, to net.Conn, size int) (send, receive time.Duration) {
	const piece = 16 << 10
	sent := make(chan time.Duration, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		start := threadCPU(b)
		data := make([]byte, piece)
		for range size / piece {
			if _, err := from.Write(data); err != nil {
				b.Error(err)
				break
			}
		}
		sent <- threadCPU(b) - start
	}()
	start := threadCPU(b)
	p := make([]byte, piece)
	for got := 0; got < size; {
		n, err := to.Read(p)
		if err != nil {
			b.Fatal(err)
		}
		got += n
	}
	receive = threadCPU(b) - start
	return <-sent, receive
}

// BenchmarkBulk compares E053 with its bare cipher, in memory and over the same
// TCP loopback, in MB per second of CPU.
func BenchmarkBulk(b *testing.B) {
	const size = 16 << 20
	m := newMaterial(b)
	for _, suite := range []uint16{tlcp.ECC_SM4_GCM_SM3, tlcp.ECC_SM4_CBC_SM3} {
		b.Run(fmt.Sprintf("%04X", suite), func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			server, client := m.configs(suite, false)
			s, c := sockets(b)
			ours, theirs := tlcp.Server(s, server), tlcp.Client(c, client)
			go theirs.Handshake()
			if err := ours.Handshake(); err != nil {
				b.Fatal(err)
			}
			x, y := sockets(b)
			bareS, bareC := newBare(b, x), newBare(b, y)
			aead, err := sm4gcm.New(make([]byte, sm4gcm.KeySize))
			if err != nil {
				b.Fatal(err)
			}
			var down, up, bareDown, bareUp, memory []time.Duration
			text, nonce, out := make([]byte, 16<<10), make([]byte, sm4gcm.NonceSize), make([]byte, 0, 32<<10)
			for b.Loop() {
				d, u := transfer(b, ours, theirs, size)
				down, up = append(down, d), append(up, u)
				d, u = transfer(b, bareS, bareC, size)
				bareDown, bareUp = append(bareDown, d), append(bareUp, u)
				start := threadCPU(b)
				for range size / len(text) {
					aead.Seal(out, nonce, text, nil)
				}
				memory = append(memory, threadCPU(b)-start)
			}
			speed := func(d []time.Duration) float64 { return size / median(d) }
			b.ReportMetric(speed(down), "send-MB/s")
			b.ReportMetric(speed(up), "receive-MB/s")
			b.ReportMetric(speed(bareDown), "bare-tcp-send-MB/s")
			b.ReportMetric(speed(bareUp), "bare-tcp-receive-MB/s")
			b.ReportMetric(speed(memory), "bare-seal-MB/s")
			for _, conn := range []net.Conn{ours, theirs, x, y} {
				conn.Close()
			}
		})
	}
}
