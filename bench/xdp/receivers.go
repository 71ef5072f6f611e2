//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/bpf"
	"github.com/yumen-zt/yumen/bpf/nft"
)

// receiver drops what comes to g0. on puts it there and returns how to take it
// away; the caller is inside.
type receiver struct {
	name string
	on   func() (off func(), err error)
}

func bareDrop() (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{Name: "bare_drop", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, Flags: unix.BPF_F_XDP_HAS_FRAGS, License: "Dual MIT/GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
}

func attach(p *ebpf.Program, flags link.XDPAttachFlags) (func(), error) {
	i, err := index("g0")
	if err != nil {
		return nil, err
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: i, Flags: flags})
	if err != nil {
		return nil, err
	}
	return func() { l.Close() }, nil
}

// xdpFilter is one of the programs of Debian's xdp-tools, with a port denied:
// "udp" looks at UDP ports alone, "all" at everything that it can. Its dispatcher
// is left out, in its favour.
func xdpFilter(kind string, ports ...uint16) func() (func(), error) {
	return func() (func(), error) {
		c, err := loadFilter(kind, ports...)
		if err != nil {
			return nil, err
		}
		off, err := attach(c.Programs["xdpfilt_alw_"+kind], link.XDPDriverMode)
		if err != nil {
			c.Close()
			return nil, err
		}
		return func() { off(); c.Close() }, nil
	}
}

func loadFilter(kind string, ports ...uint16) (*ebpf.Collection, error) {
	files, _ := filepath.Glob("/usr/lib/*/bpf/xdpfilt_alw_" + kind + ".o")
	if len(files) == 0 {
		return nil, fmt.Errorf("xdp-filter is not here (apt install xdp-tools)")
	}
	spec, err := ebpf.LoadCollectionSpec(files[0])
	if err != nil {
		return nil, err
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, err
	}
	flags := make([]uint64, ebpf.MustPossibleCPU())
	for i := range flags {
		flags[i] = 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<5 // source, destination, TCP, UDP
	}
	for _, port := range ports {
		if err := c.Maps["filter_ports"].Put(uint32(port<<8|port>>8), flags); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// nftIngress drops at the device whoever is not in a set.
func nftIngress() (func(), error) {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(`table netdev bench {
	set allowed { type ipv4_addr; flags timeout; }
	chain in { type filter hook ingress device "g0" priority 0; policy accept; ip saddr @allowed accept; meta l4proto { tcp, udp } counter drop; }
}`)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("nft: %w: %s", err, out)
	}
	return func() { _ = exec.Command("nft", "delete", "table", "netdev", "bench").Run() }, nil
}

func guardConfig(mode bpf.Mode, pins string, entries int) bpf.Config {
	c := bpf.Config{
		Interface: "g0", Mode: mode, PinDir: pins, TCP: []uint16{443}, KnockPort: 62201, TokenUDP: []uint16{8443}, Uses: bpf.Rate{PerSecond: 10_000_000, Burst: 10_000_000},
		Management: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("2001:db8:9::/48")},
	}
	if entries > 0 {
		n := 1
		for n < entries {
			n <<= 1
		}
		c.Sizes = bpf.Sizes{Denied: n, Tickets: n, Openings: n, Networks: 4096, Sources: 65536}
	}
	return c
}

// guard is ours; entries: in each map, of sources that the flood does not have.
func guard(mode bpf.Mode, entries int) func() (func(), error) {
	return func() (func(), error) {
		pins, err := os.MkdirTemp("", "bench-xdp")
		if err != nil {
			return nil, err
		}
		g, err := bpf.Open(guardConfig(mode, pins, entries))
		if err != nil {
			return nil, err
		}
		// Nobody takes samples: in a flood that lasts they are a thousand a second.
		off := func() { g.Close(); os.RemoveAll(pins) }
		if err = fill(g, entries); err == nil {
			err = g.Attach()
		}
		if err != nil {
			off()
			return nil, err
		}
		return off, nil
	}
}

// fill puts n entries into each map; the prefilter of sources with them.
func fill(g *bpf.Guard, n int) error {
	if n == 0 {
		return nil
	}
	var denied []netip.Prefix
	source := func(top, i int) netip.Addr {
		return netip.AddrFrom4([4]byte{byte(top), byte(i >> 16), byte(i >> 8), byte(i)})
	}
	for i := range n {
		denied = append(denied, netip.PrefixFrom(source(60+i>>24, i), 32))
	}
	for i := range 4000 {
		denied = append(denied, netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 0}), 25))
	}
	if err := g.Deny(denied); err != nil {
		return err
	}
	until := bpf.Now() + time.Hour
	for i := range n {
		k := bpf.Ticket{Until: until, Port: 8443, Knock: true}
		binary.BigEndian.PutUint64(k.Alias[:], 1<<63|uint64(i))
		if _, err := rand.Read(k.Key[:]); err != nil {
			return err
		}
		if err := g.AddTicket(k); err != nil {
			return err
		}
		if err := g.OpenPort(source(70+i>>24, i), 8443, 6, k.Alias, time.Hour); err != nil {
			return err
		}
	}
	// The prefilter finds its size.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return g.Run(ctx, nil, nil)
}

// secondTier is ours in nftables.
func secondTier() (func(), error) {
	g, err := nft.Open(guardConfig(bpf.Nftables, "", 0))
	if err != nil {
		return nil, err
	}
	if err := g.Attach(); err != nil {
		g.Close()
		return nil, err
	}
	if err := g.Pin(); err != nil {
		return nil, err
	}
	return func() { _ = g.Detach(); g.Close() }, nil
}
