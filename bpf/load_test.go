package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// maxVerified keeps the program loadable in milliseconds on every kernel that
// has BPF links; in-line code would cost hundreds of thousands.
const maxVerified = 10_000

func TestVerifiedInstructions(t *testing.T) {
	needBPF(t)
	g, err := Open(Config{Interface: "lo", PinDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	info, err := g.prog.Info()
	if err != nil {
		t.Fatal(err)
	}
	n, ok := info.VerifiedInstructions()
	jit, _ := info.JitedSize()
	t.Logf("%d verified instructions, %d bytes of machine code", n, jit)
	if !ok || n > maxVerified {
		t.Errorf("%d verified instructions, at most %d", n, maxVerified)
	}
}

// pair is two namespaces and a veth between them: this thread stands in the
// inner one, which has the guarded end g0.
type pair struct{ outer int }

func newPair(t testing.TB) *pair {
	t.Helper()
	inNetns(t)
	inner, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	outer, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(inner); unix.Close(outer) })
	p := &pair{outer}
	if err := unix.Setns(inner, unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	ip(t, "link add g0 type veth peer name h0")
	ip(t, "addr add 10.77.0.1/24 dev g0")
	ip(t, "addr add fd77::1/64 dev g0 nodad")
	// Moved by a descriptor: nobody else finds the outer namespace by a name.
	cmd := exec.Command("ip", "link", "set", "h0", "netns", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(dup(t, outer)), "netns")}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ip(t, "link set g0 up")
	p.out(t, func() {
		ip(t, "link set lo up")
		ip(t, "link set h0 up")
		ip(t, "addr add 10.77.0.2/24 dev h0")
		ip(t, "addr add 10.77.0.3/24 dev h0")
		ip(t, "addr add fd77::2/64 dev h0 nodad")
	})
	return p
}

func dup(t testing.TB, fd int) int {
	t.Helper()
	n, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// out runs f in the outer namespace, on a thread of its own, and waits.
func (p *pair) out(t testing.TB, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never given back: it stands in the wrong namespace
		if err := unix.Setns(p.outer, unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

func testConfig(t testing.TB, mode Mode) Config {
	return Config{
		Interface: "g0", Mode: mode, TCP: []uint16{80}, KnockPort: 62201, PinDir: t.TempDir(),
		Sizes: Sizes{Denied: 64, Networks: 64, Tickets: 64, Openings: 256, Sources: 64},
	}
}

func eachMode(t *testing.T, f func(*testing.T, Mode)) {
	needBPF(t)
	for _, m := range []Mode{Native, Generic} {
		t.Run(string(m), func(t *testing.T) { f(t, m) })
	}
}

func mustOpen(t testing.TB, cfg Config) *Guard {
	t.Helper()
	g, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func unmountAfter(t testing.TB, dir string) {
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// An upgrade, a crash and a restart let no packet through; a changed size of a
// map takes new maps, and counters of kept maps go on (S38).
func TestS38_UpgradesLeakNothing(t *testing.T) {
	eachMode(t, func(t *testing.T, mode Mode) {
		p := newPair(t)
		cfg := testConfig(t, mode)
		unmountAfter(t, cfg.PinDir)
		g := mustOpen(t, cfg)
		if err := g.Attach(); err != nil {
			t.Fatal(err)
		}
		if err := g.Pin(); err != nil {
			t.Fatal(err)
		}
		var leaked, sent atomic.Int64
		sink, err := net.ListenPacket("udp", "10.77.0.1:9999")
		if err != nil {
			t.Fatal(err)
		}
		defer sink.Close()
		go func() {
			b := make([]byte, 64)
			for {
				if _, _, err := sink.ReadFrom(b); err != nil {
					return
				}
				leaked.Add(1)
			}
		}()
		stop := make(chan struct{})
		flood := make(chan struct{})
		go func() {
			defer close(flood)
			p.out(t, func() {
				c, err := net.ListenPacket("udp", "10.77.0.2:0")
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.77.0.1:9999"))
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := c.WriteTo([]byte("flood"), to); err == nil {
						sent.Add(1)
					}
				}
			})
		}()
		defer func() { close(stop); <-flood }()
		count := func() uint64 {
			c, err := g.Counters()
			if err != nil {
				t.Fatal(err)
			}
			return c[IPv4][DropUnauthorized]
		}
		for count() == 0 {
			time.Sleep(time.Millisecond)
		}
		was := count()
		rounds := 50
		for i := range rounds {
			g.Close() // as a killed process does: every descriptor goes
			next := cfg
			next.TCP = []uint16{80, uint16(1000 + i)}
			if g, err = Open(next); err != nil {
				t.Fatal(err)
			}
			if s := g.State(); !s.Attached || !s.Pinned {
				t.Fatalf("round %d: not taken over: %+v", i, s)
			}
			if err := g.Attach(); err != nil {
				t.Fatal(err)
			}
		}
		if now := count(); now < was {
			t.Errorf("counters began anew: %d, then %d", was, now)
		}
		cfg.Sizes.Openings = 512
		g.Close()
		if g, err = Open(cfg); err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		if err := g.Attach(); err != nil {
			t.Fatal(err)
		}
		if err := g.Configure(cfg); err != nil {
			t.Fatal(err)
		}
		for count() == 0 { // of the new maps
			time.Sleep(time.Millisecond)
		}
		t.Logf("%d packets sent, %d leaked in %d upgrades", sent.Load(), leaked.Load(), rounds)
		if leaked.Load() != 0 {
			t.Errorf("%d of %d packets leaked", leaked.Load(), sent.Load())
		}
		if out, err := exec.Command("ip", "link", "set", "g0", "xdp", "off").CombinedOutput(); mode == Native && err == nil {
			t.Errorf("ip took the program off a link: %s", out)
		}
		if there, err := Remove(cfg.PinDir, "g0"); err != nil || !there {
			t.Errorf("remove: %v, %v", there, err)
		}
		for end := time.Now().Add(10 * time.Second); leaked.Load() == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("nothing passes after Remove: the flood proves nothing")
			}
		}
	})
}

// pinnedGuard returns a guard that is attached and pinned.
func pinnedGuard(t *testing.T) (Config, *Guard) {
	t.Helper()
	needBPF(t)
	newPair(t)
	cfg := testConfig(t, Native)
	unmountAfter(t, cfg.PinDir)
	g := mustOpen(t, cfg)
	if err := errors.Join(g.Attach(), g.Pin()); err != nil {
		t.Fatal(err)
	}
	return cfg, g
}

// A pin of an interface that is gone does not stand in the way.
func TestPinOfAGoneInterface(t *testing.T) {
	cfg, g := pinnedGuard(t)
	g.Close()
	ip(t, "link del g0")
	ip(t, "link add g0 type veth peer name h0")
	g = mustOpen(t, cfg)
	if g.State().Attached {
		t.Fatal("a shell of a link counts as attached")
	}
	if err := g.Attach(); err != nil {
		t.Fatal(err)
	}
	if err := g.Detach(); err != nil {
		t.Fatal(err)
	}
	if Pinned(cfg.PinDir, "g0") {
		t.Error("pins left behind")
	}
}

// frame is an Ethernet frame with an IPv4 packet from s.
func frame(s string, protocol uint8, seg []byte) []byte {
	b := make([]byte, 34, 34+len(seg))
	b[12] = 8
	b[14], b[22], b[23] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(b[16:], uint16(20+len(seg)))
	a := netip.MustParseAddr(s).As4()
	copy(b[26:], a[:])
	copy(b[30:], []byte{192, 0, 2, 1})
	return append(b, seg...)
}

func syn(from, port uint16) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], port)
	b[12], b[13] = 0x50, 2
	return b
}

// A source has its rate, another has its own, and time gives it back.
func TestRateOfASource(t *testing.T) {
	needBPF(t)
	g := mustOpen(t, Config{Interface: "lo", TCP: []uint16{80}, Rate: Rate{100, 20}, ICMP: Rate{10, 5}, PinDir: t.TempDir(), Sizes: Sizes{Sources: 1024}})
	pass := func(f []byte, n int) (passed int) {
		for range n {
			ret, err := g.prog.Run(&ebpf.RunOptions{Data: f})
			if err != nil {
				t.Fatal(err)
			}
			if ret == 2 {
				passed++
			}
		}
		return passed
	}
	start := time.Now()
	a := pass(frame("198.51.100.1", 6, syn(1, 80)), 1000)
	most := 21 + int(time.Since(start)/(10*time.Millisecond)) + 1
	if a < 20 || a > most {
		t.Errorf("%d of 1000 passed, 20 to %d expected", a, most)
	}
	if b := pass(frame("198.51.100.2", 6, syn(1, 80)), 10); b != 10 {
		t.Errorf("another source: %d of 10 passed", b)
	}
	time.Sleep(100 * time.Millisecond)
	if c := pass(frame("198.51.100.1", 6, syn(1, 80)), 5); c != 5 {
		t.Errorf("after 100 ms %d of 5 passed", c)
	}
	start = time.Now()
	d := pass(frame("198.51.100.3", 1, []byte{3, 4, 0, 0, 0, 0, 5, 0}), 100)
	if most := 6 + int(time.Since(start)/(100*time.Millisecond)) + 1; d < 5 || d > most {
		t.Errorf("%d of 100 ICMP errors passed, 5 to %d expected", d, most)
	}
}

// Deny lists change by what differs, and what is taken over is known.
func TestDenyLists(t *testing.T) {
	needBPF(t)
	g := mustOpen(t, Config{Interface: "lo", TCP: []uint16{80}, PinDir: t.TempDir()})
	passes := func(s string) bool {
		ret, err := g.prog.Run(&ebpf.RunOptions{Data: frame(s, 6, syn(1, 80))})
		if err != nil {
			t.Fatal(err)
		}
		return ret == 2
	}
	deny := func(list string) {
		t.Helper()
		var all []netip.Prefix
		for f := range strings.FieldsSeq(list) {
			all = append(all, netip.MustParsePrefix(f))
		}
		if err := g.Deny(all); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ list, out, in string }{
		{"1.2.3.4/32 5.0.0.0/8 9.9.9.0/24 8.8.8.128/25", "1.2.3.4 5.6.7.8 9.9.9.9 8.8.8.200", "1.2.3.5 6.0.0.1 9.9.8.9 8.8.8.100"},
		{"1.2.3.5/32 8.8.8.128/25 8.8.8.8/32", "1.2.3.5 8.8.8.200 8.8.8.8", "1.2.3.4 5.6.7.8 9.9.9.9 8.8.8.9"},
		{"8.8.8.8/32", "8.8.8.8", "8.8.8.200 1.2.3.5"},
		{"", "", "8.8.8.8"},
	} {
		deny(c.list)
		for s := range strings.FieldsSeq(c.out) {
			if passes(s) {
				t.Errorf("list %q: %s passes", c.list, s)
			}
		}
		for s := range strings.FieldsSeq(c.in) {
			if !passes(s) {
				t.Errorf("list %q: %s is denied", c.list, s)
			}
		}
	}
	deny("1.2.3.4/32 5.0.0.0/8 2001:db8::/64 2001:db8:1::/40")
	var again denied
	if err := again.recall(g); err != nil || len(again.all) != 4 || again.wide != g.deny.wide || len(again.slots[0]) != len(g.deny.slots[0]) {
		t.Errorf("taken over: %d networks, %v, %v; %v", len(again.all), again.wide, g.deny.wide, err)
	}
	if err := g.Deny([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}); err == nil {
		t.Error("everybody was denied")
	}
}

// Drops are told while there are few, and not all when there are many.
func TestDropsAreSampled(t *testing.T) {
	needBPF(t)
	newPair(t)
	g := mustOpen(t, testConfig(t, Generic))
	ctx, cancel := context.WithCancel(t.Context())
	var got, weight atomic.Int64
	done := make(chan error)
	go func() {
		done <- g.Run(ctx, nil, func(d Drop) {
			if d.Source.Addr().String() == "198.51.100.9" && d.Port == 23 && d.Verdict == DropUnauthorized {
				got.Add(1)
				weight.Add(int64(d.Weight))
			}
		})
	}()
	f := frame("198.51.100.9", 6, syn(7, 23))
	drop := func(n int) {
		if _, err := g.prog.Run(&ebpf.RunOptions{Data: f, Repeat: uint32(n)}); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(10 * time.Second); got.Load() < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no drop was told")
		}
		drop(1)
	}
	for end := time.Now().Add(10 * time.Second); g.tune.load32(tuneSample) == 0; {
		if time.Now().After(end) {
			t.Fatal("the sampling never adapted")
		}
		drop(100_000)
	}
	time.Sleep(50 * time.Millisecond)
	was, heavy := got.Load(), weight.Load()
	drop(100_000)
	time.Sleep(100 * time.Millisecond)
	if n := got.Load() - was; n > 60_000 || n == 0 && g.tune.load32(tuneSample) < 1<<16 {
		t.Errorf("%d of 100000 drops told, weight %d", n, weight.Load()-heavy)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if m := g.tune.load32(tuneSample); m != noSamples {
		t.Errorf("mask %#x after the end: nobody reads the samples", m)
	}
}
