// Package probe says what this system has for the guard: BPF, XDP by
// interface, nftables, capabilities; which tier will run, what lacks, and how
// to get it. It attaches nothing.
//
//	probe.go    Kernel: the report
//	netdev.go   what the driver of an interface says of XDP
package probe

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/bpf"
	"github.com/yumen-zt/yumen/bpf/nft"
)

// Report is what [Kernel] found.
type Report struct {
	Kernel       string          `json:"kernel"`
	Architecture string          `json:"architecture"`
	Facts        []Fact          `json:"facts"`
	Interfaces   []Interface     `json:"interfaces"`
	Capabilities map[string]bool `json:"capabilities"` // of this process
	Tier         string          `json:"tier"`         // xdp, nftables, user_space
	Why          Text            `json:"why"`
	Remedies     []Text          `json:"remedies"`
}

// Text is said in both languages.
type Text struct {
	EN string `json:"en"`
	ZH string `json:"zh"`
}

// Fact is one thing that the system has or lacks.
type Fact struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Interface is one that the guard may stand on.
type Interface struct {
	Name    string `json:"name"`
	Driver  string `json:"driver"`
	Native  string `json:"native"`  // yes, no, unknown: the driver's word (Linux 6.3)
	Program bool   `json:"program"` // an XDP program hangs there already
	Mode    string `json:"mode"`    // what guard.mode would come to: native, generic, nftables, none
}

// needed are the capabilities of the two tiers.
var needed = []struct {
	name string
	bit  uint
	xdp  bool
}{{"CAP_BPF", unix.CAP_BPF, true}, {"CAP_NET_ADMIN", unix.CAP_NET_ADMIN, true}, {"CAP_PERFMON", unix.CAP_PERFMON, true}, {"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN, false}}

// Kernel looks at the system it runs on. pinDir is the folder of bpffs, empty
// for the default; iface is one interface, empty for all that are up.
func Kernel(pinDir, iface string) (*Report, error) {
	r := &Report{Kernel: release(), Architecture: runtime.GOARCH, Capabilities: map[string]bool{}, Facts: []Fact{}, Interfaces: []Interface{}, Remedies: []Text{}}
	held := capabilities()
	var lackXDP []string
	for _, c := range needed {
		r.Capabilities[c.name] = held&(1<<c.bit) != 0
		if c.xdp && !r.Capabilities[c.name] && !r.Capabilities["CAP_SYS_ADMIN"] {
			lackXDP = append(lackXDP, c.name)
		}
	}
	root := held&(1<<unix.CAP_SYS_ADMIN) != 0
	if root {
		lackXDP = nil
		if held&(1<<unix.CAP_NET_ADMIN) == 0 {
			lackXDP = []string{"CAP_NET_ADMIN"}
		}
	}

	xdp := r.bpf()
	r.files(pinDir)
	second := r.nftables()

	all, err := interfaces(iface)
	if err != nil {
		return nil, err
	}
	for _, ifc := range all {
		n := Interface{Name: ifc.Name, Driver: driver(ifc.Name), Native: nativeXDP(ifc.Index), Program: hasProgram(ifc.Name)}
		switch {
		case xdp && n.Native == "yes":
			n.Mode = "native"
		case xdp && n.Native == "unknown":
			n.Mode = "native, else generic"
		case xdp:
			n.Mode = "generic"
		case second:
			n.Mode = "nftables"
		default:
			n.Mode = "none"
		}
		r.Interfaces = append(r.Interfaces, n)
	}
	r.conclude(xdp, second, lackXDP)
	return r, nil
}

func (r *Report) fact(name string, err error, detail string) bool {
	if err != nil {
		detail = err.Error()
	}
	r.Facts = append(r.Facts, Fact{name, err == nil, detail})
	return err == nil
}

// bpf tries what the program needs, and the program itself.
func (r *Report) bpf() bool {
	if m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}); r.fact("bpf", err, "the system call works") {
		m.Close()
	}
	jit, _ := os.ReadFile("/proc/sys/net/core/bpf_jit_enable")
	var slow error
	if s := strings.TrimSpace(string(jit)); s == "0" {
		slow = errors.New("off: programs are interpreted (sysctl net.core.bpf_jit_enable=1)")
	}
	r.fact("bpf_jit", slow, "on")
	_, err := os.Stat("/sys/kernel/btf/vmlinux")
	if err != nil {
		err = errors.New("no /sys/kernel/btf/vmlinux (the guard does not need it)")
	}
	r.fact("btf", err, "/sys/kernel/btf/vmlinux")
	r.fact("xdp", features.HaveProgramType(ebpf.XDP), "programs of this type load")
	r.fact("ring_buffer", features.HaveMapType(ebpf.RingBuf), "maps of this type are made")
	for _, h := range []struct {
		name string
		f    asm.BuiltinFunc
	}{{"skc_lookup_tcp", asm.FnSkcLookupTcp}, {"ktime_get_coarse_ns", asm.FnKtimeGetCoarseNs}, {"jiffies64", asm.FnJiffies64}, {"xdp_load_bytes", asm.FnXdpLoadBytes}} {
		r.fact(h.name, features.HaveProgramHelper(ebpf.XDP, h.f), "there")
	}
	g, err := bpf.Open(bpf.Config{Interface: "lo", PinDir: filepath.Join(os.TempDir(), "yumen-nowhere"), Sizes: bpf.Sizes{Denied: 16, Networks: 16, Tickets: 16, Openings: 16, Sources: 16}})
	detail := ""
	if err == nil {
		detail = "loads"
		g.Close()
	}
	return r.fact("guard_program", err, detail)
}

// files looks for bpffs.
func (r *Report) files(pinDir string) {
	dir := cmp.Or(pinDir, "/sys/fs/bpf")
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	if err == nil && uint32(st.Type) != unix.BPF_FS_MAGIC {
		err = fmt.Errorf("%s is not bpffs (the gateway mounts it when it may: mount -t bpf bpf %s)", dir, dir)
	}
	r.fact("bpffs", err, dir)
}

// nftables tries the rules of the second tier.
func (r *Report) nftables() bool {
	path, err := nft.Program()
	r.fact("nft", err, path)
	if err != nil {
		return false
	}
	g, err := nft.Open(bpf.Config{Interface: "lo", Mode: bpf.Nftables, KnockPort: 62201})
	if err == nil {
		g.Close()
	}
	return r.fact("nf_tables", err, "takes the rules of the guard")
}

// conclude says which tier will run, and what to do about what lacks.
func (r *Report) conclude(xdp, second bool, lack []string) {
	remedy := func(en, zh string, args ...any) {
		r.Remedies = append(r.Remedies, Text{fmt.Sprintf(en, args...), fmt.Sprintf(zh, args...)})
	}
	switch {
	case xdp:
		r.Tier = "xdp"
		r.Why = Text{"the XDP program loads here", "本机可加载 XDP 程序"}
	case second:
		r.Tier = "nftables"
		r.Why = Text{"XDP cannot run here, nftables can: the same admission, a flood costs several times as much", "本机无法运行 XDP，改用 nftables：准入效果相同，抗洪泛开销为数倍"}
	default:
		r.Tier = "user_space"
		r.Why = Text{"neither XDP nor nftables can run here: the gateway admits in user space, before any handshake; ports can be seen", "XDP 和 nftables 均不可用：网关在用户态握手之前准入，端口可被扫描到"}
	}
	if len(lack) > 0 {
		remedy("give the gateway %s: run as root, or AmbientCapabilities= in its systemd unit", "为网关授予 %s：以 root 运行，或在 systemd 单元中设置 AmbientCapabilities=", strings.Join(lack, " "))
	}
	for _, f := range r.Facts {
		if f.OK {
			continue
		}
		switch f.Name {
		case "bpf_jit":
			remedy("switch the compiler on: sysctl -w net.core.bpf_jit_enable=1", "启用 BPF 即时编译：sysctl -w net.core.bpf_jit_enable=1")
		case "bpffs":
			if xdp {
				remedy("nothing to do when the gateway has CAP_SYS_ADMIN at start; else mount it: mount -t bpf bpf /sys/fs/bpf", "若网关启动时具有 CAP_SYS_ADMIN 则无需处理，否则请挂载：mount -t bpf bpf /sys/fs/bpf")
			}
		case "guard_program":
			if len(lack) == 0 {
				remedy("XDP needs Linux 5.18 or newer with CONFIG_BPF_SYSCALL; this is %s", "XDP 需要 Linux 5.18 及以上内核并启用 CONFIG_BPF_SYSCALL；当前内核为 %s", r.Kernel)
			}
		case "nft":
			if !xdp {
				remedy("install nftables (apt install nftables, dnf install nftables)", "安装 nftables（apt install nftables 或 dnf install nftables）")
			}
		case "nf_tables":
			if !xdp && len(lack) == 0 {
				remedy("load the modules: modprobe -a nf_tables nf_conntrack nft_ct nft_limit nft_log nfnetlink_log", "加载内核模块：modprobe -a nf_tables nf_conntrack nft_ct nft_limit nft_log nfnetlink_log")
			}
		}
	}
	for _, i := range r.Interfaces {
		if i.Program {
			remedy("%s: an XDP program hangs there already, unless it is the guard take it off: ip link show %s", "%s：已挂有 XDP 程序，若不是本防护请先卸下：ip link show %s", i.Name, i.Name)
		} else if xdp && i.Native == "no" {
			remedy("%s: its driver has no XDP, the guard runs in generic mode and costs about three times as much", "%s：驱动不支持 XDP，将以 generic 模式运行，开销约为三倍", i.Name)
		}
	}
}

// Err is nil: whatever lacks is in the report.
func (r *Report) Err() error { return nil }

// Write writes r for people, in both languages.
func (r *Report) Write(out io.Writer) error {
	w := bufio.NewWriter(out)
	mark := map[bool]string{true: "yes 有", false: "no  无"}
	fmt.Fprintf(w, "kernel 内核 %s %s\n", r.Kernel, r.Architecture)
	for _, f := range r.Facts {
		fmt.Fprintf(w, "  %-22s %s  %s\n", f.Name, mark[f.OK], f.Detail)
	}
	for _, c := range needed {
		fmt.Fprintf(w, "  %-22s %s\n", c.name, mark[r.Capabilities[c.name]])
	}
	for _, i := range r.Interfaces {
		fmt.Fprintf(w, "interface 网卡 %s: driver 驱动 %s, native XDP 原生 XDP %s, guard 防护 %s\n", i.Name, cmp.Or(i.Driver, "-"), i.Native, i.Mode)
	}
	fmt.Fprintf(w, "tier 防护层 %s: %s %s\n", r.Tier, r.Why.EN, r.Why.ZH)
	for _, t := range r.Remedies {
		fmt.Fprintf(w, "- %s\n  %s\n", t.EN, t.ZH)
	}
	return w.Flush()
}

func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// capabilities returns the effective ones of this process.
func capabilities() uint64 {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		var v uint64
		if n, _ := fmt.Sscanf(line, "CapEff: %x", &v); n == 1 {
			return v
		}
	}
	return 0
}

func interfaces(name string) ([]net.Interface, error) {
	if name != "" {
		ifc, err := net.InterfaceByName(name)
		if err != nil {
			return nil, fmt.Errorf("look at interface %s: %w", name, err)
		}
		return []net.Interface{*ifc}, nil
	}
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return slices.DeleteFunc(all, func(i net.Interface) bool { return i.Flags&net.FlagLoopback != 0 || i.Flags&net.FlagUp == 0 }), nil
}

// driver returns the name of an interface's driver; empty for a virtual one
// that says none.
func driver(name string) string {
	if link, err := os.Readlink(filepath.Join("/sys/class/net", filepath.Base(name), "device/driver")); err == nil {
		return filepath.Base(link)
	}
	b, _ := os.ReadFile(filepath.Join("/sys/class/net", filepath.Base(name), "uevent"))
	for line := range strings.Lines(string(b)) {
		if kind, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVTYPE="); ok {
			return kind
		}
	}
	return ""
}
