package localuser

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// The test binary runs again as another user: it connects to the address in
// this variable, says a word and waits for the end of its standard input.
const childVar = "YUMEN_TEST_CONNECT"

func TestMain(m *testing.M) {
	if addr := os.Getenv(childVar); addr != "" {
		network, addr, _ := strings.Cut(addr, " ")
		c, err := net.Dial(network, addr)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Fprintln(c, "hello")
		bufio.NewReader(os.Stdin).ReadString('\n')
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// connectAs starts a child with uid that connects, and ends it with the test.
func connectAs(t *testing.T, uid uint32, network, addr string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The test binary lies in a folder that only root enters: pass it by descriptor.
	f, err := os.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = []string{childVar + "=" + network + " " + addr}
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
}

func TestPeerIsTheUserWhoConnected(t *testing.T) {
	uids := []uint32{uint32(os.Getuid())}
	if os.Getuid() == 0 {
		uids = append(uids, 12345)
	}
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		for _, uid := range uids {
			t.Run(fmt.Sprint(addr, " ", uid), func(t *testing.T) {
				l, err := net.Listen("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				connectAs(t, uid, "tcp", l.Addr().String())
				c, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if got, err := Peer(c); err != nil || got != uid {
					t.Errorf("sock_diag: got %d, %v, want %d", got, err, uid)
				}
				src, _ := addrPort(c.RemoteAddr())
				dst, _ := addrPort(c.LocalAddr())
				s, err := procNet("tcp", src, dst, false)
				if err != nil || s.uid != uid || s.inode == 0 {
					t.Errorf("/proc/net: got %+v, %v, want uid %d", s, err, uid)
				}
			})
		}
	}
}

func TestMappedIPv4ClientIsFound(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	to := &syscall.SockaddrInet6{Port: l.Addr().(*net.TCPAddr).Port}
	copy(to.Addr[:], net.IPv4(127, 0, 0, 1).To16())
	if err := syscall.Connect(fd, to); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := Peer(c); err != nil || got != uint32(os.Getuid()) {
		t.Errorf("got %d, %v", got, err)
	}
}

func TestAClosedSocketBelongsToNobody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(client, "data under way")
	client.Close()
	if got, err := Peer(c); err == nil {
		t.Errorf("got uid %d of a closed socket, want an error", got)
	}
}

func TestAHalfClosedClientIsStillItsUsers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := client.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := Peer(c); err != nil || got != uint32(os.Getuid()) {
		t.Errorf("got %d, %v", got, err)
	}
}

func TestUDPPeer(t *testing.T) {
	uid := uint32(os.Getuid())
	if uid == 0 {
		uid = 12345
	}
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		pc, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		connectAs(t, uid, "udp", pc.LocalAddr().String())
		var b [16]byte
		_, from, err := pc.ReadFrom(b[:])
		if err != nil {
			t.Fatal(err)
		}
		local := pc.LocalAddr().(*net.UDPAddr).AddrPort()
		if got, err := UDPPeer(local, from.(*net.UDPAddr).AddrPort()); err != nil || got != uid {
			t.Errorf("%s: got %d, %v, want %d", addr, got, err, uid)
		}
	}
}

func FuzzScanProc(f *testing.F) {
	f.Add("  sl  local rem\n 0: 0100007F:0050 0100007F:1538 01 00000000:00000000 00:00000000 00000000 1000 0 4242 1\n")
	src, dst := netip.MustParseAddrPort("127.0.0.1:80"), netip.MustParseAddrPort("127.0.0.1:5432")
	f.Fuzz(func(t *testing.T, table string) {
		if s, err := scanProc(strings.NewReader(table), src, dst, false); err == nil && !strings.Contains(table, "0050") {
			t.Errorf("found %+v in %q", s, table)
		}
	})
}
