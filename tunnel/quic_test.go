package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

// listenQUIC serves tunnels on a UDP socket until the test ends, and returns its
// address.
func (w *world) listenQUIC() string {
	w.t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	return w.serveQUIC(pc)
}

func (w *world) serveQUIC(pc net.PacketConn) string {
	w.t.Helper()
	keys := must(pki())["gateway"]
	tr := &quic.Transport{Conn: pc}
	ln, err := tr.Listen(&tls.Config{
		Certificates: []tls.Certificate{must(keys.TLSCertificate(keystore.TLS))}, ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs: must(keys.TLSRoots()), NextProtos: []string{carrier.ALPN},
	}, &quic.Config{EnableDatagrams: true, MaxIncomingStreams: 1, RequireStreamCreditRelease: true})
	if err != nil {
		w.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			q, err := ln.Accept(context.Background())
			if err != nil {
				return
			}
			wg.Go(func() {
				c, err := carrier.AcceptQUIC(context.Background(), q)
				if err != nil {
					return
				}
				where := func() netip.AddrPort { return q.RemoteAddr().(*net.UDPAddr).AddrPort() }
				_ = w.srv.ServeConn(context.Background(), Conn{Conn: c, Protocol: policy.TLS13, Suite: "test",
					Peer: q.ConnectionState().TLS.PeerCertificates[0], Remote: where(), Where: where})
			})
		}
	})
	w.t.Cleanup(func() { tr.Close(); pc.Close(); wg.Wait() })
	return pc.LocalAddr().String()
}

// connectQUIC returns p's tunnel over QUIC. d may have Packets and Source.
func (w *world) connectQUIC(p party, addr string, d carrier.QUIC) *carrier.Client {
	w.t.Helper()
	d.Channel = must(channel.New(channel.Config{Keys: p.keys, AnyName: true, Peer: func(certid.Identity) error { return nil }}))
	d.Peer = func(certid.Identity) error { return nil }
	conn, err := d.Dial(w.t.Context(), addr)
	if err != nil {
		w.t.Fatal(err)
	}
	if s := conn.State(); s.Protocol != carrier.NameQUIC || s.Suite == "" || s.Peer == nil {
		w.t.Errorf("state %+v", s)
	}
	c, err := carrier.Connect(w.t.Context(), conn, carrier.ClientConfig{
		Hello: w.hello(p, p.agent), Mux: mux.Config{Window: 1 << 20},
		Identity: wire.TunnelHello{AgentID: p.agent, DeviceID: p.device, UserID: p.user, AuthToken: p.token},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

func TestGCR002_M71_TunnelOverQUIC(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	c := w.connectQUIC(w.alice, w.listenQUIC(), carrier.QUIC{})
	w.echoes(w.open(c, "tcp", w.request(w.alice)), "hello over QUIC")
	big := w.open(c, "tcp", w.request(w.alice))
	sent := bytes.Repeat([]byte("0123456789abcdef"), 256<<10) // 4 MiB
	go func() { _, _ = big.Write(sent); _ = big.CloseWrite() }()
	_ = big.SetReadDeadline(time.Now().Add(30 * time.Second))
	if got, err := io.ReadAll(big); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("4 MiB: %d bytes, %v", len(got), err)
	}
	u := w.open(c, "udp", w.request(w.alice))
	for _, n := range []int{0, 1, 1000, 1300, 9000} { // the last two do not fit the path: they take the stream
		b := make([]byte, n)
		if _, err := u.Write(b); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 65536)
		_ = u.SetReadDeadline(time.Now().Add(5 * time.Second))
		if k, err := u.Read(got); err != nil || k != n {
			t.Errorf("datagram of %d: %d, %v", n, k, err)
		}
	}
	_ = u.Close()
	eventually(t, "the end is audited", func() bool { _, r := w.rec.audited(audit.End, ""); return r.Carrier == "udp" })
	_ = c.Close()
	eventually(t, "the gateway's end is gone", func() bool { return len(w.srv.Tunnels()) == 0 })
}

// A lease that ends resets its flow over QUIC as over TCP.
func TestGCR002_M57_RevocationCutsAFlowOverQUIC(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	c := w.connectQUIC(w.alice, w.listenQUIC(), carrier.QUIC{})
	f := w.open(c, "tcp", w.request(w.alice))
	w.echoes(f, "before")
	ended := make(chan error, 1)
	go func() { _, err := f.Read(make([]byte, 1)); ended <- err }()
	in := w.input()
	in.Grants[0].AppIDList = nil
	in.Version++
	start := time.Now()
	w.apply(in)
	select {
	case err := <-ended:
		t.Logf("list to the agent's reset: %v (%v)", time.Since(start), err)
		if err == nil || time.Since(start) > 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the flow goes on")
	}
}

// A tunnel over QUIC follows its device to another address; what flows goes on
// there, if it may.
func TestTunnelOverQUICMoves(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	addr := w.listenQUIC()
	var at atomic.Pointer[netip.Addr]
	set := func(s string) { a := netip.MustParseAddr(s); at.Store(&a) }
	set("127.0.0.1")
	moving := carrier.QUIC{
		Packets: func(context.Context, *net.UDPAddr) (net.PacketConn, bool, error) {
			pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(*at.Load(), 0)))
			return pc, false, err
		},
		Source: func(*net.UDPAddr) (netip.Addr, bool) { return *at.Load(), true },
	}
	c := w.connectQUIC(w.alice, addr, moving)
	f := w.open(c, "tcp", w.request(w.alice))
	w.echoes(f, "at home")
	start := time.Now()
	set("127.0.0.2")
	eventually(t, "the gateway sees the new address", func() bool {
		w.echoes(f, "on the way")
		in := w.srv.Tunnels()
		return len(in) == 1 && in[0].Remote.Addr() == *at.Load()
	})
	t.Logf("moved after %v", time.Since(start))
	w.echoes(f, "abroad")
	eventually(t, "the move is audited", func() bool { n, _ := w.rec.audited(audit.Interface, "tunnel move"); return n == 1 })

	// A policy that knows the old address alone ends it.
	in := w.input()
	in.Policies = []wire.Policy{{PolicyID: "POL00000001", PolicyName: "home", PolicyType: "ipallow", PolicyData: "127.0.0.1/32"}}
	in.Version, in.PolicyVersion = 2, 2
	w.apply(in)
	_ = f.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := f.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the flow goes on at an address that is not allowed: %v", err)
	}
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}
