package gateway

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/bpf"
)

// Where another XDP program hangs on the interface, the guard's loads and cannot
// attach: nftables admits then, and says why; unless XDP alone was chosen.
func TestS38_NftablesWhereXDPCannotAttach(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: needs root")
	}
	runtime.LockOSThread() // never given back
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", "-ec", "ip link set lo up; ip link add g0 type veth peer name h0; ip link set g0 up; nft list tables").CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: %v: %s", err, out)
	}
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	if err != nil {
		t.Skipf("NOT TESTED: this system has no XDP: %v", err)
	}
	defer other.Close()
	ifc, err := net.InterfaceByName("g0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: other, Interface: ifc.Index})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, mode := range []bpf.Mode{bpf.Auto, bpf.Native, bpf.Generic} {
		c := bpf.Config{Interface: "g0", Mode: mode, KnockPort: 62201, PinDir: t.TempDir(), Logger: zap.NewNop(), Sizes: bpf.Sizes{Denied: 64, Networks: 64, Tickets: 64, Openings: 64, Sources: 64}}
		got, err := openTier(c, openXDP, openNft)
		if err != nil {
			t.Fatalf("mode %q: %v", mode, err)
		}
		err = got.Attach()
		d := &guard{tier: got}
		name, why := d.admitsIn()
		switch {
		case mode == bpf.Auto && (err != nil || name != tierNftables || why == "" || !got.State().Attached || got.State().Mode != bpf.Nftables):
			t.Errorf("chosen by itself: %v, %s because of %q, %+v", err, name, why, got.State())
		case mode != bpf.Auto && (err == nil || name != tierXDP):
			t.Errorf("mode %q: %v, %s", mode, err, name)
		}
		if err := errors.Join(got.Detach(), got.Close()); err != nil {
			t.Errorf("mode %q: %v", mode, err)
		}
	}
}
