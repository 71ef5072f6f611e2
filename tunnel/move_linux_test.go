package tunnel

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
)

// A device goes from one network to another while something flows: the old
// link is gone without a word. Every byte arrives, and the flow stands still for
// less than a second on a quiet machine.
func TestTunnelOverQUICChangesNetworksWithoutLoss(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("root is needed for network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("ip is missing (apt-get install iproute2)")
	}
	id := os.Getpid() % 10000
	ag, gw := fmt.Sprintf("ym-ag%d", id), fmt.Sprintf("ym-gw%d", id)
	ip := func(args string) {
		t.Helper()
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v %s", args, err, out)
		}
	}
	for _, ns := range []string{ag, gw} {
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			t.Skipf("no network namespace can be made here: %v %s", err, out)
		}
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
		ip("-n " + ns + " link set lo up")
	}
	ip("-n " + gw + " addr add 10.77.0.1/32 dev lo")
	for i, link := range []string{"lan", "lte"} {
		ip(fmt.Sprintf("-n %s link add %s type veth peer name %s netns %s", ag, link, link, gw))
		ip(fmt.Sprintf("-n %s addr add 10.77.%d.2/24 dev %s", ag, i+1, link))
		ip(fmt.Sprintf("-n %s addr add 10.77.%d.1/24 dev %s", gw, i+1, link))
		for _, ns := range []string{ag, gw} {
			ip(fmt.Sprintf("-n %s link set %s up", ns, link))
		}
	}
	ip("-n " + ag + " route add 10.77.0.1 via 10.77.1.1")

	w := newWorld(t, "127.0.0.1", Limits{})
	pc := within(t, gw, func() (net.PacketConn, error) { return net.ListenPacket("udp", "10.77.0.1:0") })
	addr := w.serveQUIC(pc)
	c := w.connectQUIC(w.alice, addr, carrier.QUIC{
		Packets: func(context.Context, *net.UDPAddr) (net.PacketConn, bool, error) {
			return within(t, ag, func() (net.PacketConn, error) { return net.ListenUDP("udp", nil) }), false, nil
		},
		Source: func(to *net.UDPAddr) (netip.Addr, bool) {
			c := within(t, ag, func() (net.Conn, error) {
				if c, err := net.DialUDP("udp", nil, to); err == nil {
					return c, nil
				}
				return nil, nil // no route there now
			})
			if c == nil {
				return netip.Addr{}, false
			}
			defer c.Close()
			return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr(), true
		},
	})
	f := w.open(c, "tcp", w.request(w.alice))
	const each, all, move = 10 * time.Millisecond, 100, 30
	var writer sync.WaitGroup
	defer writer.Wait()
	defer f.Reset(reason.ClientGone)
	writer.Go(func() {
		for n := range uint32(all) {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], n)
			if _, err := f.Write(b[:]); err != nil {
				t.Errorf("write %d: %v", n, err)
				return
			}
			if n == move { // the old network is gone, the new one is there
				_ = exec.Command("ip", "-n", ag, "link", "set", "lan", "down").Run()
				time.Sleep(100 * time.Millisecond) // for which there is no way at all
				_ = exec.Command("ip", "-n", ag, "route", "add", "10.77.0.1", "via", "10.77.2.1").Run()
			}
			time.Sleep(each)
		}
	})
	var most time.Duration
	last := time.Now()
	_ = f.SetReadDeadline(time.Now().Add(30 * time.Second))
	for n := range uint32(all) {
		var b [4]byte
		if _, err := io.ReadFull(f, b[:]); err != nil || binary.BigEndian.Uint32(b[:]) != n {
			t.Fatalf("%d came back as %x, %v", n, b, err)
		}
		most = max(most, time.Since(last))
		last = time.Now()
	}
	t.Logf("longest silence: %v", most)
	if most > 5*time.Second {
		t.Errorf("the flow stood still for %v", most)
	}
	if in := w.srv.Tunnels(); len(in) != 1 || in[0].Remote.Addr() != netip.MustParseAddr("10.77.2.2") {
		t.Errorf("the gateway sees %+v", in)
	}
}

// within runs f on a thread in a network namespace.
func within[T any](t *testing.T, ns string, f func() (T, error)) (v T) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its goroutine
		fd, err := os.Open("/run/netns/" + ns)
		if err == nil {
			err = unix.Setns(int(fd.Fd()), unix.CLONE_NEWNET)
			fd.Close()
		}
		if err == nil {
			v, err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	return v
}
