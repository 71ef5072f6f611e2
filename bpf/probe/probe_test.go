package probe

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// As root on a kernel with XDP the first tier runs, and a veth has it natively
// where the kernel can say so; nothing is left behind.
func TestKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: needs root")
	}
	runtime.LockOSThread() // never given back
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", "-c", "ip link set lo up; ip link add g0 type veth peer name h0; ip link set g0 up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r, err := Kernel(t.TempDir(), "g0")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	t.Log(b.String())
	facts := map[string]Fact{}
	for _, f := range r.Facts {
		facts[f.Name] = f
	}
	if !facts["bpf"].OK {
		t.Skip("NOT TESTED: this system has no BPF")
	}
	if r.Tier != "xdp" || !facts["guard_program"].OK || facts["bpffs"].OK || len(r.Interfaces) != 1 || r.Interfaces[0].Native == "no" || r.Interfaces[0].Program {
		t.Errorf("%+v", r)
	}
	for _, want := range []string{"kernel 内核", "g0", "mount -t bpf", "请挂载"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the report does not say %q", want)
		}
	}
	if out, err := exec.Command("nft", "list", "tables").CombinedOutput(); err == nil && len(out) > 0 {
		t.Errorf("left behind: %s", out)
	}
	if _, err := Kernel("", "nowhere0"); err == nil {
		t.Error("an interface that is not there was looked at")
	}
}

// Each way of lacking something ends in a tier and in a remedy in both languages.
func TestConclusions(t *testing.T) {
	lack := func(names ...string) (facts []Fact) {
		for _, n := range names {
			facts = append(facts, Fact{Name: n, Detail: "no"})
		}
		return facts
	}
	for _, c := range []struct {
		xdp, second bool
		facts       []Fact
		caps        []string
		tier, says  string
	}{
		{true, true, nil, nil, "xdp", ""},
		{true, false, lack("bpffs", "nft"), nil, "xdp", "mount -t bpf"},
		{false, true, lack("guard_program"), nil, "nftables", "Linux 5.18"},
		{false, false, lack("guard_program", "nft"), nil, "user_space", "install nftables"},
		{false, false, lack("guard_program", "nf_tables"), []string{"CAP_NET_ADMIN"}, "user_space", "CAP_NET_ADMIN"},
		{false, false, lack("guard_program", "nf_tables"), nil, "user_space", "modprobe"},
	} {
		r := &Report{Kernel: "4.19", Facts: c.facts}
		r.conclude(c.xdp, c.second, c.caps)
		said := ""
		for _, t := range r.Remedies {
			said += t.EN + "\n"
		}
		if r.Tier != c.tier || !strings.Contains(said, c.says) || c.says == "" && said != "" {
			t.Errorf("%+v: tier %s, %s", c, r.Tier, said)
		}
		for _, x := range append(r.Remedies, r.Why) {
			if x.EN == "" || x.ZH == "" {
				t.Errorf("%+v: said in one language only: %+v", c, x)
			}
		}
	}
}
