package demo

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/bpf"
)

// namespace is a network namespace that a descriptor holds open.
type namespace struct{ file *os.File }

func newNamespace() (n namespace, err error) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never given back
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.file, err = os.Open("/proc/thread-self/ns/net")
		}
		done <- err
	}()
	return n, <-done
}

// do runs f on a thread in n.
func (n namespace) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never given back: it stands in the wrong namespace
		err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// openOutside makes a namespace and the pair of interfaces between it and this
// one. Its error says why the demo has no guard.
func openOutside(dir string) (o *outside, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("it needs root 需要 root 权限")
	}
	words, err := exec.LookPath("ip")
	if err != nil {
		return nil, errors.New("the program ip is not here (install iproute2)")
	}
	n := os.Getpid()
	o = &outside{iface: fmt.Sprintf("ym%d", n), pins: filepath.Join(dir, "bpf")}
	// A network of four addresses of RFC 2544, which nobody routes to.
	o.address = netip.AddrFrom4([4]byte{198, 18 + byte(n>>14&1), byte(n >> 6), byte(n<<2) | 1})
	if o.knock, err = freeUDP(); err != nil {
		return nil, err
	}
	if o.ns, err = newNamespace(); err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.close())
		}
	}()
	ip := func(line string) error {
		cmd := exec.Command(words, strings.Fields(line)...)
		cmd.ExtraFiles = []*os.File{o.ns.file} // 3
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	far := o.address.Next()
	for _, line := range []string{
		"link add " + o.iface + " type veth peer name " + o.iface + "o",
		"link set " + o.iface + "o netns /proc/self/fd/3",
		"addr add " + o.address.String() + "/30 dev " + o.iface,
		"link set " + o.iface + " up",
	} {
		if err := ip(line); err != nil {
			return o, err
		}
	}
	err = o.ns.do(func() error {
		return errors.Join(ip("addr add "+far.String()+"/30 dev "+o.iface+"o"), ip("link set "+o.iface+"o up"))
	})
	return o, err
}

// freeUDP returns a port that is free on loopback; on the new address all are.
func freeUDP() (int, error) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).Port, nil
}

// close takes everything away that openOutside and the guard have made.
func (o *outside) close() error {
	_, err := bpf.Remove(o.pins, o.iface)
	if _, e := net.InterfaceByName(o.iface); e == nil {
		if out, e := exec.Command("ip", "link", "del", o.iface).CombinedOutput(); e != nil {
			err = errors.Join(err, fmt.Errorf("remove %s: %w: %s", o.iface, e, out))
		}
	}
	if e := unix.Unmount(o.pins, unix.MNT_DETACH); e != nil && !errors.Is(e, unix.EINVAL) && !errors.Is(e, unix.ENOENT) {
		err = errors.Join(err, fmt.Errorf("unmount %s: %w", o.pins, e))
	}
	return errors.Join(err, o.ns.file.Close())
}
