package nft

import (
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/bpf"
)

func inNetns(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: nftables needs root")
	}
	if _, err := Program(); err != nil {
		t.Skip("NOT TESTED: nft is not here (apt install nftables)")
	}
	runtime.LockOSThread() // never given back
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	ip(t, "link set lo up")
	ip(t, "link add g0 type veth peer name h0")
	ip(t, "addr add 10.77.0.1/24 dev g0")
	ip(t, "link set g0 up")
	ip(t, "link set h0 up")
}

func ip(t testing.TB, words string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(words)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", words, err, out)
	}
}

func TestOpenAttach(t *testing.T) {
	inNetns(t)
	g, err := Open(bpf.Config{
		Interface: "g0", TCP: []uint16{80, 443}, UDP: []uint16{443}, TokenUDP: []uint16{8443}, KnockPort: 62201, DHCP: true, Ping: true, SYNToken: true,
		Rate: bpf.Rate{PerSecond: 100, Burst: 200}, Management: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("2001:db8:9::/48"), netip.MustParsePrefix("10.9.3.0/24")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := g.Attach(); err != nil {
		t.Fatal(err)
	}
	if err := g.Pin(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	t.Logf("%v\n%s", err, out)
}
