package tunnel

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/tunnel/carrier"
)

// What a network does to a tunnel over QUIC, by the kernel's own hand.
func TestR10_BadNetworksOverQUIC(t *testing.T) {
	p := newPath(t)
	long := os.Getenv("YUMEN_LONG") == "1"
	var addr string
	p.within(p.far, func() {
		pc, err := net.ListenPacket("udp", gateAddr+":0")
		if err != nil {
			t.Fatal(err)
		}
		addr = p.serveQUIC(pc)
	})
	agent := func() *carrier.Client {
		t.Helper()
		c := p.connectQUIC(p.alice, addr, carrier.QUIC{
			Packets: func(context.Context, *net.UDPAddr) (pc net.PacketConn, _ bool, err error) {
				p.within(p.near, func() { pc, err = net.ListenUDP("udp", nil) })
				return pc, false, err
			},
			Source: func(*net.UDPAddr) (netip.Addr, bool) { return netip.MustParseAddr("10.88.0.2"), true },
		})
		return c
	}
	alive := func(c *carrier.Client) {
		t.Helper()
		if err := c.Err(); err != nil {
			t.Errorf("the tunnel ended: %v", err)
		}
	}
	t.Run("path MTU 1280", func(t *testing.T) {
		p.sh("ip -n " + p.far + " link set v0 mtu 1280")
		p.sh("ip -n " + p.near + " link set v1 mtu 1280")
		c := agent()
		t.Logf("1 MiB there and back in %v", p.moves(p.open(c, "tcp", p.request(p.alice)), 1<<20, time.Minute))
		p.echoes(p.open(c, "udp", p.request(p.alice)), strings.Repeat("d", 8000)) // a datagram above any packet of the path
		alive(c)
	})
	t.Run("outage of 1 s", func(t *testing.T) {
		c := agent()
		f := p.open(c, "tcp", p.request(p.alice))
		p.echoes(f, "before")
		p.nft("add rule inet t in drop")
		time.AfterFunc(time.Second, p.clear)
		if took := p.moves(f, 64<<10, 20*time.Second); took < time.Second {
			t.Errorf("%v: there was no outage", took)
		} else {
			t.Logf("64 KiB there and back in %v, of which 1 s was the outage", took)
		}
		alive(c)
	})
	t.Run("NAT rebinding", func(t *testing.T) {
		if !long {
			t.Skip("10 s; YUMEN_LONG=1 runs it")
		}
		for _, k := range []string{"timeout", "timeout_stream"} {
			if out, err := exec.Command("ip", "netns", "exec", p.near, "sysctl", "-w", "net.netfilter.nf_conntrack_udp_"+k+"=1").CombinedOutput(); err != nil {
				t.Skipf("no connection tracking here: %s", out)
			}
		}
		p.nft("add table ip n; add chain ip n post { type nat hook postrouting priority 100; }; add rule ip n post meta l4proto udp masquerade to :20000-40000 fully-random")
		defer p.nft("delete table ip n")
		c := agent()
		f := p.open(c, "tcp", p.request(p.alice))
		ports := map[uint16]bool{}
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(1500 * time.Millisecond) { // the NAT forgets meanwhile
			t.Logf("1 KiB there and back in %v", p.moves(f, 1024, 10*time.Second))
			for _, in := range p.srv.Tunnels() {
				ports[in.Remote.Port()] = true
			}
		}
		if len(ports) < 2 {
			t.Errorf("the gateway saw the ports %v: there was no rebinding", ports)
		}
		alive(c)
	})
	t.Run("30 % loss", func(t *testing.T) {
		if !long {
			t.Skip("half a minute; YUMEN_LONG=1 runs it")
		}
		c := agent()
		f := p.open(c, "tcp", p.request(p.alice))
		p.nft("add rule inet t in numgen random mod 100 < 30 drop")
		defer p.clear()
		t.Logf("256 KiB there and back over 30 %% loss in %v", p.moves(f, 256<<10, 2*time.Minute))
		alive(c)
	})
	t.Run("outage of 30 s", func(t *testing.T) {
		if !long {
			t.Skip("30 s; YUMEN_LONG=1 runs it")
		}
		c := agent()
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
		p.echoes(p.open(agent(), "tcp", p.request(p.alice)), "again")
		t.Logf("after 30 s of outage a new tunnel and flow took %v", time.Since(began))
	})
	t.Run("UDP blocked", func(t *testing.T) {
		p.nft("add rule inet t in meta l4proto udp drop")
		defer p.clear()
		c := p.mustAgent() // by TCP, which the agent's race falls back to
		p.echoes(p.open(c, "tcp", p.request(p.alice)), "by TCP")
	})
}
