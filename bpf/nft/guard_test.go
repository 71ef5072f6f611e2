package nft

import (
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

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

func testConfig() bpf.Config {
	return bpf.Config{
		Interface: "g0", TCP: []uint16{80}, KnockPort: 62201, SYNToken: true, Ping: true, DHCP: true, TokenUDP: []uint16{8443}, UDP: []uint16{443},
		Rate: bpf.Rate{PerSecond: 100, Burst: 200}, Management: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("2001:db8:9::/48"), netip.MustParsePrefix("10.9.3.0/24")},
	}
}

func mustOpen(t testing.TB, cfg bpf.Config) *Guard {
	t.Helper()
	g, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// there reports whether the tables are in the kernel.
func there(t testing.TB) bool {
	t.Helper()
	out, err := exec.Command("nft", "list", "tables").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n := strings.Count(string(out), "yumen_g0")
	if n != 0 && n != 2 {
		t.Errorf("%d of two tables: %s", n, out)
	}
	return n == 2
}

// An unconfirmed guard ends with its process, a pinned one goes on: it is taken
// over with its deny list, also when a size has changed, and only Remove or
// Detach end it (S38).
func TestS38_PinnedTablesOutliveTheProcess(t *testing.T) {
	inNetns(t)
	g := mustOpen(t, testConfig())
	if there(t) {
		t.Error("Open loaded something")
	}
	if err := g.Attach(); err != nil {
		t.Fatal(err)
	}
	if s := g.State(); !s.Attached || s.Pinned || s.Mode != bpf.Nftables || !there(t) {
		t.Errorf("attached: %+v", s)
	}
	lease, err := g.nl.elements(inet, g.table(), "guarded")
	if err != nil || len(lease) != 1 || lease[0].timeout != leaseFor {
		t.Errorf("an unconfirmed guard is in force for %+v: %v", lease, err)
	}
	g.Close()
	if there(t) {
		t.Error("the tables outlive an unconfirmed guard")
	}

	g = mustOpen(t, testConfig())
	list := []netip.Prefix{netip.MustParsePrefix("203.0.113.5/32"), netip.MustParsePrefix("203.0.113.6/32"), netip.MustParsePrefix("2001:db8:bad::/64"), netip.MustParsePrefix("100.64.0.0/10")}
	if err := g.Deny(list); err != nil {
		t.Fatal(err)
	}
	if err := g.Attach(); err != nil {
		t.Fatal(err)
	}
	if err := g.Pin(); err != nil {
		t.Fatal(err)
	}
	g.Close()
	if !there(t) {
		t.Fatal("a pinned guard is gone")
	}
	for i, openings := range []int{0, 128} {
		cfg := testConfig()
		cfg.Sizes.Openings = openings
		g = mustOpen(t, cfg)
		if s := g.State(); !s.Attached || !s.Pinned || g.Denied() != 3 {
			t.Errorf("taken over: %+v, %d addresses denied", s, g.Denied())
		}
		lease, err := g.nl.elements(inet, g.table(), "guarded")
		if err != nil || len(lease) != 1 || lease[0].timeout != 0 {
			t.Errorf("round %d: in force for %+v: %v", i, lease, err)
		}
		if err := g.Deny(list[1:]); err != nil {
			t.Fatal(err)
		}
		for set, want := range map[string]int{"deny4": 1, "deny6": 1, "deny4net": 2} {
			if all, err := g.nl.elements(netdev, g.table(), set); err != nil || len(all) != want {
				t.Errorf("round %d: %s holds %d, not %d: %v", i, set, len(all), want, err)
			}
		}
		if err := g.Deny(list); err != nil { // as the next round expects it
			t.Fatal(err)
		}
		g.Close()
	}
	if was, err := Remove("g0"); err != nil || !was || there(t) {
		t.Errorf("remove: %v, %v", was, err)
	}
	if was, err := Remove("g0"); err != nil || was {
		t.Errorf("remove of nothing: %v, %v", was, err)
	}
}

// An opening and its end take the kernel well below the 5 ms that a new list
// has.
func TestOpeningsAreFast(t *testing.T) {
	inNetns(t)
	g := mustOpen(t, testConfig())
	if err := g.Attach(); err != nil {
		t.Fatal(err)
	}
	k := bpf.Ticket{Alias: [8]byte{0x90}, Until: bpf.Now() + time.Hour, Knock: true}
	var open, shut []time.Duration
	for i := range 200 {
		if err := g.AddTicket(k); err != nil {
			t.Fatal(err)
		}
		source := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})
		start := time.Now()
		if err := g.OpenPort(source, 8443, 6, k.Alias, time.Minute); err != nil {
			t.Fatal(err)
		}
		open = append(open, time.Since(start))
		if all, err := g.nl.elements(inet, g.table(), "open4"); err != nil || len(all) != 1 || all[0].timeout != time.Minute {
			t.Fatalf("opened %+v: %v", all, err)
		}
		start = time.Now()
		if err := g.RemoveTicket(k.Alias); err != nil {
			t.Fatal(err)
		}
		shut = append(shut, time.Since(start))
		if all, err := g.nl.elements(inet, g.table(), "open4"); err != nil || len(all) != 0 {
			t.Fatalf("still open %+v: %v", all, err)
		}
	}
	slices.Sort(open)
	slices.Sort(shut)
	t.Logf("open %v, at most %v; shut %v, at most %v", open[100], open[199], shut[100], shut[199])
	if open[0] > 5*time.Millisecond || shut[0] > 5*time.Millisecond {
		t.Errorf("the fastest opening takes %v, its end %v", open[0], shut[0])
	}
	if len(g.opened) != 0 || len(g.byTicket) != 0 {
		t.Errorf("%d openings, %d tickets kept in the books", len(g.opened), len(g.byTicket))
	}
}

// A large deny list is in force in some seconds, and what did not change is not
// touched.
func TestLargeDenyList(t *testing.T) {
	inNetns(t)
	cfg := testConfig()
	cfg.Sizes.Denied = 1 << 20
	g := mustOpen(t, cfg)
	if err := g.Attach(); err != nil {
		t.Fatal(err)
	}
	n := 20_000
	if os.Getenv("YUMEN_LONG") == "1" {
		n = 1_000_000
	}
	var list []netip.Prefix
	for i := range n {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 32))
	}
	start := time.Now()
	if err := g.Deny(list); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	start = time.Now()
	if err := g.Deny(list[1:]); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d addresses in %v, one less in %v", n, took, time.Since(start))
	if all, err := g.nl.elements(netdev, g.table(), "deny4"); err != nil || len(all) != n-1 {
		t.Errorf("%d denied: %v", len(all), err)
	}
	if err := g.Deny([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}); err == nil {
		t.Error("everybody was denied")
	}
}

// Connections of before are read as the kernel writes them.
func TestConnectionsOfBefore(t *testing.T) {
	for _, c := range []struct{ line, local, remote string }{
		{"   0: 0100007F:0277 0200007F:C350 01 00000000:00000000", "127.0.0.1:631", "127.0.0.2:50000"},
		{"   1: 0000000000000000FFFF00000100007F:01BB 0000000000000000FFFF00000200004D:D431 08 x", "127.0.0.1:443", "77.0.0.2:54321"},
		{"   2: B80D0120000000000000000001000000:0016 B80D0120000000000000000002000000:0400 01 x", "[2001:db8::1]:22", "[2001:db8::2]:1024"},
		{"   3: 00000000:0016 00000000:0000 0A 00000000:00000000", "", ""},
		{"  sl  local_address rem_address   st tx_queue", "", ""},
		{"", "", ""},
	} {
		local, remote, ok := connection(c.line)
		if ok != (c.local != "") || ok && (local.String() != c.local || remote.String() != c.remote) {
			t.Errorf("%q: %v, %v, %v", c.line, local, remote, ok)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0, 2, 0, 8, 0, 0})
	f.Add([]byte{0x60, 0, 0, 0, 0, 16, 0, 64, 32: 1, 39: 1, 40: 17, 48: 0, 49: 1, 51: 2, 53: 8, 55: 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := parse(b); ok && (len(p.payload) > len(b)-28 || p.protocol != 6 && p.protocol != 17) {
			t.Errorf("%+v", p)
		}
	})
}
