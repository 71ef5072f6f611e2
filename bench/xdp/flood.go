//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// flood makes packets whose source address is another each time, and puts them
// on h0's wire without a stack: live frames of BPF_PROG_TEST_RUN. It is for one
// goroutine, on a thread that stays outside and on one core.
type flood struct {
	prog  *ebpf.Program
	state *ebpf.Map
	frame []byte
	core  int
	soft  string // ksoftirqd's schedstat
}

// newFlood makes one of packets like frame, an IPv4 packet.
func newFlood(frame []byte, core int) (*flood, error) {
	out, err := index("h0")
	if err != nil {
		return nil, err
	}
	state, err := ebpf.NewMap(&ebpf.MapSpec{Name: "flood_state", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return nil, err
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "flood", Type: ebpf.XDP, License: "Dual MIT/GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMapValue(asm.R1, state.FD(), 0),
		asm.LoadMem(asm.R7, asm.R1, 0, asm.DWord),
		asm.Add.Imm(asm.R7, 1),
		asm.StoreMem(asm.R1, 0, asm.R7, asm.DWord),
		asm.LoadMem(asm.R2, asm.R6, 0, asm.Word),
		asm.LoadMem(asm.R3, asm.R6, 4, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, 34),
		asm.JGT.Reg(asm.R4, asm.R3, "drop"),
		asm.LoadImm(asm.R5, 0x9e3779b97f4a7c15-1<<63-1<<63, asm.DWord), // spread over 2^20 sources in 16/8
		asm.Mul.Reg(asm.R7, asm.R5),
		asm.RSh.Imm(asm.R7, 44),
		asm.LSh.Imm(asm.R7, 8),
		asm.Or.Imm(asm.R7, 16),
		asm.StoreMem(asm.R2, 26, asm.R7, asm.Word),
		asm.Mov.Imm(asm.R1, int32(out)),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("drop"),
		asm.Return(),
	}})
	if err != nil {
		return nil, fmt.Errorf("load generator: %w", err)
	}
	return &flood{prog, state, frame, core, softirqd(core)}, nil
}

// send puts n packets on the wire.
func (f *flood) send(n int) error {
	opts := &ebpf.RunOptions{Data: f.frame, Repeat: uint32(n), Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: 64}
	_, err := f.prog.Run(opts)
	if err != nil {
		return fmt.Errorf("send live frames: %w", err)
	}
	return nil
}

// pace puts rate packets a second on the wire until stop is closed, and returns
// how many, and in how long. What it is behind by after a pause it sends in
// bursts of a hundredth of a second at most.
func (f *flood) pace(rate int, stop <-chan struct{}) (sent int, took time.Duration, err error) {
	start := time.Now()
	most := rate / 100
	for {
		took = time.Since(start)
		select {
		case <-stop:
			return sent, took, nil
		default:
		}
		due := int(took.Seconds()*float64(rate)) - sent
		if due < most/10 {
			time.Sleep(time.Millisecond)
			continue
		}
		due = min(due, most)
		if err := f.send(due); err != nil {
			return sent, took, err
		}
		sent += due
	}
}

// spent returns the CPU time of this thread and of the kernel's that goes on
// with its packets on this core.
func (f *flood) spent() (time.Duration, error) {
	mine, err := schedstat("/proc/thread-self/schedstat")
	if err != nil {
		return 0, err
	}
	soft, err := schedstat(f.soft)
	return mine + soft, err
}

func schedstat(path string) (time.Duration, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b))
	if len(fields) == 0 {
		return 0, errors.New(path + ": empty")
	}
	n, err := strconv.ParseInt(fields[0], 10, 64)
	return time.Duration(n), err
}

// softirqd returns where the times of a core's ksoftirqd stand.
func softirqd(core int) string {
	all, _ := os.ReadDir("/proc")
	for _, e := range all {
		if b, err := os.ReadFile("/proc/" + e.Name() + "/comm"); err == nil && strings.TrimSpace(string(b)) == fmt.Sprintf("ksoftirqd/%d", core) {
			return "/proc/" + e.Name() + "/schedstat"
		}
	}
	return "/proc/none"
}

// frame is an Ethernet frame with an IPv4 packet to 10.77.0.1.
func frame(to []byte, source [4]byte, protocol uint8, segment []byte) []byte {
	b := make([]byte, 34, 64+len(segment))
	copy(b, to)
	b[12], b[13] = 8, 0
	b[14], b[22], b[23] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(b[16:], uint16(20+len(segment)))
	copy(b[26:], source[:])
	copy(b[30:], []byte{10, 77, 0, 1})
	return append(b, segment...)
}

func udp(from, to uint16, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return append(b, payload...)
}

func syn(from, to uint16) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	b[12], b[13] = 0x50, 2
	return b
}
