package tunnel

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

// path is two network namespaces: the gateway's listener in one, agents in the
// other, and a link between them that can be made bad.
type path struct {
	*world
	t         *testing.T
	far, near string
}

const gateAddr = "10.88.0.1"

func newPath(t *testing.T) *path {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	p := &path{t: t, far: fmt.Sprintf("ymg%d", os.Getpid()), near: fmt.Sprintf("yma%d", os.Getpid())}
	t.Cleanup(func() {
		for _, ns := range []string{p.far, p.near} {
			_ = exec.Command("ip", "netns", "del", ns).Run() // absent after a failed start
		}
	})
	p.sh("ip netns add " + p.far)
	p.sh("ip netns add " + p.near)
	p.sh("ip -n " + p.far + " link add v0 type veth peer name v1 netns " + p.near)
	p.sh("ip -n " + p.far + " addr add " + gateAddr + "/24 dev v0")
	p.sh("ip -n " + p.near + " addr add 10.88.0.2/24 dev v1")
	p.sh("ip -n " + p.far + " link set v0 up")
	p.sh("ip -n " + p.near + " link set v1 up")
	p.nft("add table inet t; add chain inet t in { type filter hook input priority 0; }")
	p.world = newWorld(t, "127.0.0.1", Limits{PerDevice: 64})
	p.within(p.far, func() {
		p.world.host = gateAddr
		p.world.listen(must(pki())["gateway"])
		p.world.host = "127.0.0.1"
	})
	return p
}

func (p *path) sh(line string) {
	p.t.Helper()
	w := strings.Fields(line)
	if out, err := exec.Command(w[0], w[1:]...).CombinedOutput(); err != nil {
		p.t.Fatalf("%s: %v: %s", line, err, out)
	}
}

// nft changes the rules of what reaches the agents.
func (p *path) nft(rules string) {
	p.t.Helper()
	if out, err := exec.Command("ip", "netns", "exec", p.near, "nft", rules).CombinedOutput(); err != nil {
		p.t.Errorf("nft %s: %v: %s", rules, err, out)
	}
}

func (p *path) clear() { p.nft("flush chain inet t in") }

// within runs f on a thread in a namespace. Sockets that f makes belong there.
func (p *path) within(ns string, f func()) {
	p.t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never given back: it stands in the wrong namespace
		file, err := os.Open("/var/run/netns/" + ns)
		if err == nil {
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
			file.Close()
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		p.t.Fatal(err)
	}
}

// agent makes a tunnel of Alice's, over the default carrier of this package's
// world.
func (p *path) agent() (c *carrier.Client, err error) {
	p.t.Helper()
	d := &carrier.TCP{Channel: must(channel.New(channel.Config{Keys: p.alice.keys, ALPN: []string{carrier.ALPN}, AnyName: true, Peer: func(certid.Identity) error { return nil }}))}
	p.within(p.near, func() {
		ctx, cancel := context.WithTimeout(p.t.Context(), 5*time.Second)
		defer cancel()
		var conn carrier.Conn
		if conn, err = d.Dial(ctx, net.JoinHostPort(gateAddr, p.port)); err == nil {
			c, err = carrier.Connect(ctx, conn, carrier.ClientConfig{
				Hello: p.hello(p.alice, p.alice.agent), Mux: mux.Config{Window: 1 << 20},
				Identity: wire.TunnelHello{AgentID: p.alice.agent, DeviceID: p.alice.device, UserID: p.alice.user, AuthToken: p.alice.token},
			})
		}
	})
	if err == nil {
		p.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (p *path) mustAgent() *carrier.Client {
	p.t.Helper()
	c, err := p.agent()
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// moves sends n bytes through an echoing flow and wants them back.
func (p *path) moves(f *mux.Flow, n int, limit time.Duration) time.Duration {
	p.t.Helper()
	want := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(want)
	began := time.Now()
	_ = f.SetDeadline(began.Add(limit))
	sent := make(chan error, 1)
	go func() { _, err := f.Write(want); sent <- err }()
	got := make([]byte, n)
	if _, err := io.ReadFull(f, got); err != nil {
		p.t.Fatalf("%d bytes: %v", n, err)
	}
	if err := <-sent; err != nil || !bytes.Equal(got, want) {
		p.t.Fatalf("%d bytes: other ones came back, %v", n, err)
	}
	_ = f.SetDeadline(time.Time{})
	return time.Since(began)
}

// What a network does to a tunnel over TCP, by the kernel's own hand.
func TestR10_BadNetworks(t *testing.T) {
	p := newPath(t)
	long := os.Getenv("YUMEN_LONG") == "1"
	t.Run("path MTU 1280", func(t *testing.T) {
		p.sh("ip -n " + p.far + " link set v0 mtu 1280")
		p.sh("ip -n " + p.near + " link set v1 mtu 1280")
		c := p.mustAgent()
		t.Logf("1 MiB there and back in %v", p.moves(p.open(c, "tcp", p.request(p.alice)), 1<<20, time.Minute))
		u := p.open(c, "udp", p.request(p.alice))
		p.echoes(u, strings.Repeat("d", 8000)) // a datagram above any packet of the path
	})
	t.Run("outage of 1 s", func(t *testing.T) {
		c := p.mustAgent()
		f := p.open(c, "tcp", p.request(p.alice))
		p.echoes(f, "before")
		p.nft("add rule inet t in drop")
		over := make(chan struct{})
		time.AfterFunc(time.Second, func() { defer close(over); p.clear() })
		took := p.moves(f, 64<<10, 20*time.Second)
		<-over
		t.Logf("64 KiB there and back in %v, of which 1 s was the outage", took)
		if took < time.Second {
			t.Error("nothing was held up: there was no outage")
		}
		if err := c.Err(); err != nil {
			t.Errorf("the tunnel ended: %v", err)
		}
	})
	t.Run("reset by the path", func(t *testing.T) {
		if !long {
			t.Skip("3 s; YUMEN_LONG=1 runs it")
		}
		c := p.mustAgent()
		f := p.open(c, "tcp", p.request(p.alice))
		p.echoes(f, "before")
		p.nft("add rule inet t in meta l4proto tcp reject with tcp reset")
		began := time.Now()
		_, _ = f.Write([]byte("out")) // the answer to it meets the reset at the far end; ours dies of the next
		select {
		case <-p.gone(f):
			t.Logf("the gateway freed the flow after %v", time.Since(began))
		case <-time.After(20 * time.Second):
			t.Error("20 s after the reset the gateway has the flow")
		}
		p.clear()
		if _, err := p.agent(); err != nil {
			t.Errorf("a new tunnel after it: %v", err)
		}
	})
	t.Run("outage for good", func(t *testing.T) {
		if !long {
			t.Skip("12 s; YUMEN_LONG=1 runs it")
		}
		c := p.mustAgent()
		p.nft("add rule inet t in drop")
		began := time.Now()
		select {
		case <-c.Done():
			t.Logf("the agent gave the path up after %v: %v", time.Since(began), c.Err())
		case <-time.After(15 * time.Second):
			t.Error("15 s into an outage the agent has its tunnel")
		}
		time.Sleep(max(0, 30*time.Second-time.Since(began)))
		p.clear()
		began = time.Now()
		c = p.mustAgent()
		p.echoes(p.open(c, "tcp", p.request(p.alice)), "again")
		t.Logf("after 30 s of outage a new tunnel and flow took %v", time.Since(began))
	})
	t.Run("30 % loss", func(t *testing.T) {
		if !long {
			t.Skip("half a minute; YUMEN_LONG=1 runs it")
		}
		c := p.mustAgent()
		f := p.open(c, "tcp", p.request(p.alice))
		p.nft("add rule inet t in numgen random mod 100 < 30 drop")
		defer p.clear()
		t.Logf("256 KiB there and back over 30 %% loss in %v", p.moves(f, 256<<10, 2*time.Minute))
		if err := c.Err(); err != nil {
			t.Errorf("the tunnel ended: %v", err)
		}
	})
}

// gone is closed when the gateway's end of f's tunnel has no flow.
func (p *path) gone(*mux.Flow) <-chan struct{} {
	out := make(chan struct{})
	go func() {
		defer close(out)
		for end := time.Now().Add(25 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			flows := 0
			for _, x := range p.srv.Tunnels() {
				flows += x.Flows
			}
			if flows == 0 {
				return
			}
		}
	}()
	return out
}
