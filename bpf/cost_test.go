package bpf

import (
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// BenchmarkGuard gives the time of one packet in the program (BPF_PROG_TEST_RUN,
// the best of interleaved rounds), and of a bare drop beside it. Caches are
// warm: it is always the same packet.
func BenchmarkGuard(b *testing.B) {
	needBPF(b)
	inNetns(b)
	bare, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "Dual MIT/GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
	if err != nil {
		b.Fatal(err)
	}
	defer bare.Close()
	cfg := Config{
		Interface: "lo", TCP: []uint16{443}, KnockPort: 62201, TokenUDP: []uint16{8443}, Uses: Rate{10_000_000, 10_000_000},
		Management: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("2001:db8:9::/48")},
		PinDir:     b.TempDir(), Sizes: Sizes{Denied: 1 << 20, Openings: 1 << 20, Tickets: 1 << 20},
	}
	g := mustOpen(b, cfg)
	g.tune.store32(tuneSample, noSamples)
	ticket := Ticket{Alias: [8]byte{0x90, 1}, Key: [16]byte{1, 2}, Until: Now() + time.Hour, Port: 8443}
	if err := g.AddTicket(ticket); err != nil {
		b.Fatal(err)
	}
	good := tokenOf(ticket, 7, 8443, 17)
	forged := slices.Clone(good)
	forged[19] ^= 1
	unknown := slices.Clone(good)
	unknown[3] = 9
	if !g.passes(b, frame("198.51.100.3", 17, datagram(5, 8443, good))) {
		b.Fatal("the token opens nothing")
	}
	paths := []struct {
		name  string
		prog  *ebpf.Program
		frame []byte
	}{
		{"bare drop", bare, frame("198.51.100.1", 6, syn(5, 23))},
		{"unauthorized SYN", g.prog, frame("198.51.100.1", 6, syn(5, 23))},
		{"unauthorized UDP", g.prog, frame("198.51.100.1", 17, datagram(5, 23, nil))},
		{"published SYN", g.prog, frame("198.51.100.1", 6, syn(5, 443))},
		{"ticket unknown", g.prog, frame("198.51.100.1", 17, datagram(5, 8443, unknown))},
		{"token forged", g.prog, frame("198.51.100.1", 17, datagram(5, 8443, forged))},
		{"token replayed", g.prog, frame("198.51.100.1", 17, datagram(5, 8443, good))},
		{"flow established", g.prog, frame("198.51.100.3", 17, datagram(5, 8443, []byte("later")))},
	}
	if f := xdpFilter(b); f != nil { // Debian's xdp-tools, dropping by UDP port
		paths = append(paths, paths[2], paths[1])
		n := len(paths)
		paths[n-2].name, paths[n-2].prog = "xdp-filter, UDP", f
		paths[n-1].name, paths[n-1].prog = "xdp-filter, SYN", f
	}
	took := make([][]float64, len(paths))
	const repeat = 10_000
	for range 200 {
		for i, p := range paths {
			_, d, err := p.prog.Benchmark(p.frame, repeat, nil)
			if err != nil {
				b.Fatal(err)
			}
			took[i] = append(took[i], float64(d.Nanoseconds()))
		}
	}
	for range b.N { //nolint:revive // what is measured was measured above
	}
	for i, p := range paths {
		slices.Sort(took[i])
		b.Logf("%-18s %4.0f ns", p.name, took[i][0])
	}
}

// xdpFilter returns the program of xdp-tools with one denied UDP port, 23; nil
// when it is not here.
func xdpFilter(b *testing.B) *ebpf.Program {
	files, _ := filepath.Glob("/usr/lib/*/bpf/xdpfilt_alw_all.o")
	if len(files) == 0 {
		b.Log("NOT MEASURED: xdp-filter is not here (apt install xdp-tools)")
		return nil
	}
	spec, err := ebpf.LoadCollectionSpec(files[0])
	if err != nil {
		b.Fatal(err)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		b.Logf("NOT MEASURED: xdp-filter: %v", err)
		return nil
	}
	b.Cleanup(c.Close)
	flags := make([]uint64, ebpf.MustPossibleCPU())
	for i := range flags {
		flags[i] = 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<5 // source, destination, TCP, UDP
	}
	if err := c.Maps["filter_ports"].Put(uint32(swap(23)), flags); err != nil {
		b.Fatal(err)
	}
	return c.Programs["xdpfilt_alw_all"]
}
