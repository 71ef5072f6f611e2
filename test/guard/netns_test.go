// Package guard drives the real binary behind the guard in network namespaces:
//
//	a (10.1.0.2) ┐
//	             ├ r: a router that masquerades ── g0 (10.77.0.1, fd77::1): the gateway
//	b (10.1.0.3) ┘    10.77.0.2, fd77::2
//
// The test's own process stands in the gateway's namespace, so that a site of
// the testbed runs there as it is.
package guard

import (
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/test/testbed"
)

const inside = "YUMEN_TEST_NETNS"

// TestMain runs the tests again in a network namespace of their own.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Geteuid() != 0 || os.Getenv(inside) != "" {
		code := m.Run()
		testbed.RemoveBinary()
		os.Exit(code)
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "in a network namespace:", err)
		os.Exit(1)
	}
}

// netns is a network namespace that a thread holds open.
type netns struct {
	name string
	fd   int
}

func newNetns(t testing.TB, name string) *netns {
	t.Helper()
	n := &netns{name: name}
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // never given back
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		errs <- err
	}()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(n.fd) })
	n.sh(t, "ip link set lo up")
	return n
}

// in runs f on a thread in n, and waits. What f starts stays there.
func (n *netns) in(t testing.TB, f func()) {
	t.Helper()
	done := make(chan bool)
	go func() {
		ok := false
		defer func() { done <- ok }()
		runtime.LockOSThread() // never given back: it stands in the wrong namespace
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		f()
		ok = true
	}()
	if !<-done {
		t.FailNow()
	}
}

// sh runs a line of words in n and returns its output.
func (n *netns) sh(t testing.TB, line string) (out string) {
	t.Helper()
	n.in(t, func() { out = sh(t, line) })
	return out
}

func sh(t testing.TB, line string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", line).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// join puts one end of a veth into n; the other, of this name, stays here, or
// goes into far.
func join(t testing.TB, near *netns, a string, far *netns, b string) {
	t.Helper()
	sh(t, fmt.Sprintf("ip link add %s type veth peer name %s", a, b))
	for _, e := range []struct {
		n    *netns
		name string
	}{{near, a}, {far, b}} {
		if e.n == nil {
			continue
		}
		fd, err := unix.Dup(e.n.fd)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("ip", "link", "set", e.name, "netns", "/proc/self/fd/3")
		f := os.NewFile(uintptr(fd), e.n.name)
		cmd.ExtraFiles = []*os.File{f}
		out, err := cmd.CombinedOutput()
		f.Close()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

// network is the four namespaces.
type network struct{ a, b, r, self *netns }

var setup sync.Once

func newNetwork(t testing.TB) *network {
	t.Helper()
	setup.Do(func() { sh(t, "ip link set lo up") })
	runtime.LockOSThread() // of this thread: the program's first one may stand in another namespace for good
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	runtime.UnlockOSThread()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	n := &network{newNetns(t, "a"), newNetns(t, "b"), newNetns(t, "r"), &netns{"the gateway's", fd}}
	join(t, nil, "g0", n.r, "h0")
	join(t, n.r, "ra", n.a, "a0")
	join(t, n.r, "rb", n.b, "b0")
	t.Cleanup(func() { exec.Command("ip", "link", "del", "g0").Run() })
	sh(t, "ip addr add 10.77.0.1/24 dev g0; ip addr add fd77::1/64 dev g0 nodad; ip link set g0 up; ip route add 10.1.0.0/16 via 10.77.0.2")
	n.r.sh(t, `set -e
ip addr add 10.77.0.2/24 dev h0; ip addr add fd77::2/64 dev h0 nodad; ip link set h0 up
ip addr add 10.1.1.1/24 dev ra; ip link set ra up mtu 1280
ip addr add 10.1.2.1/24 dev rb; ip link set rb up
echo 1 >/proc/sys/net/ipv4/ip_forward
nft add table ip nat
nft 'add chain ip nat post { type nat hook postrouting priority 100 ; }'
nft add rule ip nat post oifname h0 masquerade`)
	n.a.sh(t, "ip link set a0 mtu 1280")
	for i, h := range []*netns{n.a, n.b} {
		h.sh(t, fmt.Sprintf("ip addr add 10.1.%d.2/24 dev %s0 && ip link set %s0 up && ip route add default via 10.1.%d.1", i+1, h.name, h.name, i+1))
	}
	return n
}

// reach makes a TCP connection from n to addr, or says why not.
func (n *netns) reach(t testing.TB, addr string, limit time.Duration) (c net.Conn, err error) {
	t.Helper()
	n.in(t, func() { c, err = net.DialTimeout("tcp", addr, limit) })
	return c, err
}

// shut demands that n gets no word from addr: neither an answer nor a refusal.
func (n *netns) shut(t testing.TB, why, addr string) {
	t.Helper()
	c, err := n.reach(t, addr, 700*time.Millisecond)
	if err == nil {
		c.Close()
		t.Errorf("%s: %s reached %s", why, n.name, addr)
		return
	}
	if !strings.Contains(err.Error(), "timeout") {
		t.Errorf("%s: %s got an answer from %s: %v", why, n.name, addr, err)
	}
}

// relay lets n reach port of the gateway's loopback at host.
func (n *netns) relay(t testing.TB, host, port string) {
	t.Helper()
	var ln net.Listener
	n.in(t, func() {
		var err error
		if ln, err = net.Listen("tcp", net.JoinHostPort(host, port)); err != nil {
			t.Error(err)
		}
	})
	if ln == nil {
		t.FailNow()
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port))
			if err != nil {
				in.Close()
				continue
			}
			go pipe(in, out)
			go pipe(out, in)
		}
	}()
}

func pipe(to, from net.Conn) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if n > 0 {
			if _, e := to.Write(b[:n]); e != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	to.Close()
	from.Close()
}
