//go:build linux

package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/bpf"
	"github.com/yumen-zt/yumen/internal/siphash"
)

// program measures the guard's program alone, in BPF_PROG_TEST_RUN.
func program(rounds int) error {
	p, err := newPlace()
	if err != nil {
		return err
	}
	return p.in(p.inside, func() error {
		if err := pin(1); err != nil {
			return err
		}
		pins, err := os.MkdirTemp("", "bench-xdp")
		if err != nil {
			return err
		}
		defer os.RemoveAll(pins)
		// One with the default's room for flows, and one whose flows stay in the
		// nearest cache, as everything else in such a run does.
		var guards [2]*bpf.Guard
		var progs [2]*ebpf.Program
		for i, c := range []bpf.Config{guardConfig(bpf.Native, pins, 0), guardConfig(bpf.Generic, pins, 0)} {
			if i == 1 {
				c.Interface, c.Sizes.Openings = "lo", warmRoom
			}
			g, err := bpf.Open(c)
			if err != nil {
				return err
			}
			defer g.Close()
			if err := g.Attach(); err != nil {
				return err
			}
			prog, err := attached(c.Interface)
			if err != nil {
				return err
			}
			defer prog.Close()
			guards[i], progs[i] = g, prog
		}
		return runProgram(guards, progs, rounds)
	})
}

// attached returns the program that hangs on an interface.
func attached(name string) (*ebpf.Program, error) {
	out, err := exec.Command("ip", "-j", "link", "show", name).Output()
	if err != nil {
		return nil, fmt.Errorf("ip link show %s: %w", name, err)
	}
	var links []struct {
		XDP struct {
			Prog struct {
				ID uint32 `json:"id"`
			} `json:"prog"`
		} `json:"xdp"`
	}
	if err := json.Unmarshal(out, &links); err != nil || len(links) != 1 {
		return nil, fmt.Errorf("read %s: %w", out, err)
	}
	return ebpf.NewProgramFromID(ebpf.ProgramID(links[0].XDP.Prog.ID))
}

const (
	repeat   = 4096    // runs of a program in one measurement
	stock    = 1 << 20 // genuine tokens: each run of the program takes one
	warmRoom = 256     // flows
)

func runProgram(guards [2]*bpf.Guard, progs [2]*ebpf.Program, rounds int) error {
	g, prog := guards[0], progs[0]
	k := bpf.Ticket{Alias: [8]byte{0x90, 1}, Key: [16]byte{1, 2}, Until: bpf.Now() + time.Hour, Port: 8443}
	for _, g := range guards {
		if err := g.AddTicket(k); err != nil {
			return err
		}
	}
	bare, err := bareDrop()
	if err != nil {
		return err
	}
	defer bare.Close()
	mac, stranger := make([]byte, 6), [4]byte{198, 51, 100, 1}
	good := tokenOf(k, 1, 8443, 17)
	forged := slices.Clone(good)
	forged[19] ^= 1
	unknown := slices.Clone(good)
	unknown[3] = 9
	first := frame(mac, [4]byte{198, 51, 100, 3}, 17, udp(5, 8443, good))
	if verdict, err := prog.Run(&ebpf.RunOptions{Data: first}); err != nil || verdict != 2 {
		return fmt.Errorf("a genuine token returned %d: %w", verdict, err)
	}
	feeder, err := newFeeder(k, 2)
	if err != nil {
		return err
	}
	throughGuard, err := feeder.before(prog)
	if err != nil {
		return err
	}
	throughWarm, err := feeder.before(progs[1])
	if err != nil {
		return err
	}
	throughBare, err := feeder.before(bare)
	if err != nil {
		return err
	}
	paths := []struct {
		name  string
		prog  *ebpf.Program
		frame []byte
		most  float64 // goal, ns
	}{
		{"bare drop", bare, first, 0},
		{"unauthorized SYN", prog, frame(mac, stranger, 6, syn(5, 23)), 0},
		{"unauthorized UDP, port 23", prog, frame(mac, stranger, 17, udp(5, 23, nil)), 0},
		{"unauthorized UDP, port 40000", prog, frame(mac, stranger, 17, udp(5, 40000, nil)), 0},
		{"ticket unknown", prog, frame(mac, stranger, 17, udp(5, 8443, unknown)), 0},
		{"token forged", prog, frame(mac, stranger, 17, udp(5, 8443, forged)), 60},
		{"token replayed", prog, frame(mac, stranger, 17, udp(5, 8443, good)), 0},
		{"flow established", prog, frame(mac, [4]byte{198, 51, 100, 3}, 17, udp(5, 8443, []byte("later"))), 40},
		{"token genuine, with its feeder", throughWarm, first, 0},
		{"token genuine, room for 65,536 flows, with its feeder", throughGuard, first, 0},
		{"the feeder before a bare drop", throughBare, first, 0},
	}
	if f, err := loadFilter("all", 23); err == nil {
		paths = append(paths, paths[2])
		paths[len(paths)-1].name, paths[len(paths)-1].prog = "xdp-filter, all features, UDP", f.Programs["xdpfilt_alw_all"]
		defer f.Close()
	}
	was, err := g.Counters()
	if err != nil {
		return err
	}
	times := make([][]float64, len(paths))
	used := 0
	for range rounds {
		for i, p := range paths {
			if p.prog == throughWarm {
				used += repeat
			}
			if (p.prog == throughWarm || p.prog == throughGuard) && used > stock {
				continue
			}
			_, d, err := p.prog.Benchmark(p.frame, repeat, nil)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			times[i] = append(times[i], float64(d.Nanoseconds()))
		}
	}
	now, err := g.Counters()
	if err != nil {
		return err
	}
	opened := now[bpf.IPv4][bpf.PassToken] - was[bpf.IPv4][bpf.PassToken]
	if used = min(used, stock); int(opened) < used || int(opened) > used+used/10 { // a run that a signal ended begins anew
		return fmt.Errorf("%d genuine tokens opened %d flows: what was measured is something else", used, opened)
	}
	fmt.Printf("\nThe program alone (BPF_PROG_TEST_RUN), warm caches; each of %d genuine tokens opened a flow of its own.\n\n| packet | least ns | median ns | goal |\n|---|---|---|---|\n", opened)
	row := func(name string, low, middle, most float64) {
		goal := ""
		if most > 0 {
			goal = fmt.Sprintf("%.0f", most)
		}
		fmt.Printf("| %s | %.0f | %.0f | %s |\n", name, low, middle, goal)
	}
	var fed, far, empty, none [2]float64 // least, median
	for i, p := range paths {
		low, middle := least(times[i])
		row(p.name, low, middle, p.most)
		switch p.prog {
		case throughWarm:
			fed = [2]float64{low, middle}
		case throughGuard:
			far = [2]float64{low, middle}
		case throughBare:
			empty = [2]float64{low, middle}
		}
		if i == 0 {
			none = [2]float64{low, middle}
		}
	}
	row("token genuine, without its feeder", fed[0]-empty[0]+none[0], fed[1]-empty[1]+none[1], 120)
	row("the same, room for 65,536 flows", far[0]-empty[0]+none[0], far[1]-empty[1]+none[1], 0)
	return nil
}

func tokenOf(k bpf.Ticket, counter uint32, port uint16, protocol uint8) []byte {
	b := binary.BigEndian.AppendUint32(k.Alias[:], counter)
	covered := [7]byte{6: protocol}
	copy(covered[:], b[8:])
	binary.BigEndian.PutUint16(covered[4:], port)
	return binary.LittleEndian.AppendUint64(b, siphash.Sum7(&k.Key, &covered))
}

// feeder puts another genuine token, and another source, into the packet of each
// run of a program.
type feeder struct{ tokens *ebpf.Map }

// newFeeder makes stock tokens of k, from counter from on.
func newFeeder(k bpf.Ticket, from uint32) (*feeder, error) {
	tokens, err := ebpf.NewMap(&ebpf.MapSpec{Name: "feeder_tokens", Type: ebpf.Array, KeySize: 4, ValueSize: 28, MaxEntries: stock})
	if err != nil {
		return nil, err
	}
	keys, values := make([]uint32, stock), make([][28]byte, stock)
	for i := range keys {
		keys[i] = uint32(i)
		copy(values[i][:], tokenOf(k, from+uint32(i), 8443, 17))
		binary.BigEndian.PutUint16(values[i][20:], uint16(1024+i%60000))
		copy(values[i][24:], []byte{198, 51, 100, byte(10 + i/60000)})
	}
	_, err = tokens.BatchUpdate(keys, values, nil)
	return &feeder{tokens}, err
}

// before returns a program that feeds a packet and goes on in next. The packet
// is IPv4 and UDP, its token the payload.
func (f *feeder) before(next *ebpf.Program) (*ebpf.Program, error) {
	tails, err := ebpf.NewMap(&ebpf.MapSpec{Name: "feeder_tails", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return nil, err
	}
	state, err := ebpf.NewMap(&ebpf.MapSpec{Name: "feeder_state", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return nil, err
	}
	const at = 14 + 20 + 8
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "feeder", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "Dual MIT/GPL", Flags: unix.BPF_F_XDP_HAS_FRAGS, Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMapValue(asm.R1, state.FD(), 0),
		asm.LoadMem(asm.R7, asm.R1, 0, asm.DWord),
		asm.Mov.Reg(asm.R8, asm.R7),
		asm.Add.Imm(asm.R8, 1),
		asm.StoreMem(asm.R1, 0, asm.R8, asm.DWord),
		asm.And.Imm(asm.R7, stock-1),
		asm.StoreMem(asm.RFP, -4, asm.R7, asm.Word),
		asm.LoadMapPtr(asm.R1, f.tokens.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"),
		asm.LoadMem(asm.R2, asm.R6, 0, asm.Word),
		asm.LoadMem(asm.R3, asm.R6, 4, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, at+20),
		asm.JGT.Reg(asm.R4, asm.R3, "drop"),
		asm.LoadMem(asm.R5, asm.R0, 0, asm.DWord),
		asm.StoreMem(asm.R2, at, asm.R5, asm.DWord),
		asm.LoadMem(asm.R5, asm.R0, 8, asm.DWord),
		asm.StoreMem(asm.R2, at+8, asm.R5, asm.DWord),
		asm.LoadMem(asm.R5, asm.R0, 16, asm.Word),
		asm.StoreMem(asm.R2, at+16, asm.R5, asm.Word),
		asm.LoadMem(asm.R5, asm.R0, 20, asm.Half),
		asm.StoreMem(asm.R2, 34, asm.R5, asm.Half),
		asm.LoadMem(asm.R5, asm.R0, 24, asm.Word),
		asm.StoreMem(asm.R2, 26, asm.R5, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, tails.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("drop"),
		asm.Return(),
	}})
	if err != nil {
		return nil, fmt.Errorf("load feeder: %w", err)
	}
	if err := tails.Put(uint32(0), next); err != nil {
		return nil, fmt.Errorf("set the feeder before a program: %w", err)
	}
	return prog, nil
}
