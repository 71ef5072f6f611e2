package tunnel

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/wire"
)

const agentsEnv = "YUMEN_TEST_AGENTS" // count, address, folder of the keys

// agents is the other process of TestIdleTunnelIsSmall: so many idle agents.
func agents(args string) error {
	var n int
	var addr, dir string
	if _, err := fmt.Sscan(args, &n, &addr, &dir); err != nil {
		return err
	}
	keys, err := keystore.Open(dir+"/alice", []byte("test"))
	if err != nil {
		return err
	}
	gateway, err := keystore.Open(dir+"/gateway", []byte("test"))
	if err != nil {
		return err
	}
	chain := must(keys.Chain(keystore.Sign))
	s := envelope.Sender{ID: "AGT00000001", Key: must(keys.Signer(keystore.Sign)), Cert: chain[0]}
	d := &carrier.TCP{Channel: must(channel.New(channel.Config{Keys: keys, TLCP: true, AnyName: true, ALPN: []string{carrier.ALPN}, Peer: func(certid.Identity) error { return nil }}))}
	for range n {
		c, err := d.Dial(context.Background(), addr)
		if err != nil {
			return err
		}
		if _, err := carrier.Connect(context.Background(), c, carrier.ClientConfig{
			Hello:    sealHello(&s, chain, must(gateway.Chain(keystore.Enc))[0]),
			Identity: wire.TunnelHello{AgentID: "AGT00000001", DeviceID: "DEV00000001", UserID: "USR00000001", AuthToken: "tokenAlice1"},
		}); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

// listenTLCP serves tunnels over TLCP as a gateway does, until the test ends. It
// returns the port.
func (w *world) listenTLCP() string {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	keys := must(pki())["gateway"]
	cfg := &tlcp.Config{
		Certificates: []*tlcp.Pair{must(keys.TLCPPair())}, ClientAuth: tlcp.RequireAndVerifyClientCert, ClientCAs: must(keys.Root(keystore.TLCPRoot)),
		NextProtos: []string{carrier.ALPN},
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { // whose stack grows, and goes
				c := tlcp.Server(raw, cfg)
				if err := c.HandshakeContext(ctx); err != nil {
					raw.Close()
					return
				}
				peer := tlcp.X509(c.ConnectionState().PeerSign)
				c.Settle()
				remote, _ := netip.ParseAddrPort(raw.RemoteAddr().String())
				wg.Go(func() {
					_ = w.srv.ServeConn(ctx, Conn{Conn: c, Protocol: policy.TLCP, Suite: "test", Peer: peer, Remote: remote})
				})
			})
		}
	})
	w.t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// An idle tunnel over TLCP costs the gateway one goroutine, and no more memory
// than the carrier itself needs and a little.
func TestIdleTunnelIsSmall(t *testing.T) {
	const n = 200
	w := newWorld(t, "127.0.0.1", Limits{PerDevice: n})
	port := w.listenTLCP()
	before, goroutines := used(), runtime.NumGoroutine()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), agentsEnv+"="+fmt.Sprintf("%d 127.0.0.1:%s %s", n, port, tempRoot))
	cmd.Stderr = os.Stderr
	stdin := must(cmd.StdinPipe())
	out := bufio.NewReader(must(cmd.StdoutPipe()))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stdin.Close(); _ = cmd.Wait() }()
	if line, err := out.ReadString('\n'); strings.TrimSpace(line) != "ready" {
		t.Fatalf("agents: %q, %v", line, err)
	}
	time.Sleep(5 * time.Second) // a PING and its answer, too
	after := used()
	if k := len(w.srv.Tunnels()); k != n {
		t.Fatalf("%d tunnels, want %d", k, n)
	}
	heap, stack := (after.heap-before.heap)/n, (after.stack-before.stack)/n
	t.Logf("an idle tunnel over TLCP: %d bytes of heap, %d of stack, %s goroutines", heap, stack,
		strconv.FormatFloat(float64(runtime.NumGoroutine()-goroutines)/n, 'f', 2, 64))
	if raceEnabled {
		return // the detector's own memory is in the figures
	}
	if heap+stack > 12<<10 {
		t.Errorf("%d bytes a tunnel", heap+stack)
	}
	if g := runtime.NumGoroutine() - goroutines; g > n+8 {
		t.Errorf("%d goroutines for %d tunnels", g, n)
	}
}

type memory struct{ heap, stack int }

func used() memory {
	for range 3 {
		runtime.GC() // stacks shrink by half a time
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return memory{int(m.HeapAlloc), int(m.StackInuse)}
}
