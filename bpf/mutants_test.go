package bpf

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// mutants are faults that a change of the program may bring in. Each is a text
// of the source and what takes its place. The model must catch every one.
var mutants = []struct{ name, from, to string }{
	{"more fragments is no fragment", "bpf_htons(0x3fff)) != 0", "bpf_htons(0x1fff)) != 0"},
	{"a knock's opening is for every port of the source", "if (was != 0 && was != mine)", "if (0)"},
	{"a used counter counts again", "if (back >= 32 || (bits >> back) & 1)", "if (back >= 32)"},
	{"a listener's socket is an established one", "yes = sk->state != BPF_TCP_LISTEN;", "yes = 1;"},
	{"half of the token's code is compared", "!= t->mac)", "<< 32 != t->mac << 32)"},
	{"seven extension headers", "#define MAX_EXTENSIONS 6", "#define MAX_EXTENSIONS 7"},
	{"an answer to SYN is a SYN", "syn = (p->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;", "syn = (p->flags & TCP_SYN) == TCP_SYN;"},
	{"a ticket is for every port", "t->port != bpf_htons(k->port) || ", ""},
	{"a ticket is for every protocol", "(k->protocol != 0 && k->protocol != t->protocol)", "0"},
	{"length of the authentication header", "size = (ext[1] + 2) * 4;", "size = (ext[1] + 1) * 8;"},
	{"neighbour discovery from beyond a router", "p->hops == 255 ?", "p->hops >= 1 ?"},
	{"denied sources may knock", "	if (is_denied(p))\n		return V_DENIED;\n	e =", "	e ="},
	{"an unconnected socket waits for everybody", "yes = sk->state == BPF_TCP_ESTABLISHED;", "yes = 1;"},
	{"multicast sources", "return V_SOURCE; /* multicast */", "return V_NONE;"},
	{"one VLAN tag only", "for (int i = 0; i < 2; i++) {\n		__be16", "for (int i = 0; i < 1; i++) {\n		__be16"},
	{"expired tickets count", "if (now >= k->until)", "if (0)"},
	{"port 0 meets the knock's key", "return V_MALFORMED; /* 0 would meet the key of knocks as its own */", "return V_NONE;"},
	{"every ticket may knock", "if (!k->knock)", "if (0)"},
	{"TCP fragments of managers", "p->protocol != IPPROTO_TCP && is_managed(p)", "is_managed(p)"},
	{"UDP length beyond the packet", "length > room)", "length > room + 1)"},
	{"openings outlive their ticket", "	return k && bpf_ktime_get_coarse_ns() < k->until;", "	return 1;"},
	{"openings outlive their ticket's time", "	return k && bpf_ktime_get_coarse_ns() < k->until;", "	return k != 0;"},
	{"flows outlive their ticket", " || !counts(b->slot[i].alias)", ""},
	{"a flow is looked at once only", "narrowed >> 32 == epoch && ((now - (__u32)narrowed) & MOMENTS) > 1", "1"},
	{"a flow is for every port of the source", "ports = p->source_port | (__u64)p->port << 16;", "ports = (__u64)p->port << 16;"},
	{"a flow is for every port of the host", "ports = p->source_port | (__u64)p->port << 16;", "ports = p->source_port;"},
	{"a flow is for every address of its network", "		x = stir(x ^ *(__u64 *)&p->source.w[2], t);\n", ""},
	{"a flow is for the networks of all", "		x = stir(x ^ *(__u64 *)&p->source.w[0], t);\n", ""},
	{"a flow is for every IPv4 address", "ports |= (__u64)p->source.w[3] << 32;", "ports |= 1ULL << 32;"},
	{"a flow has a new ticket and keeps its old slot", "slot = p->slot ? p->slot - 1 : place(p, t);", "slot = place(p, t);"},
	{"an open source is forgotten", "	make_known(p->hash, t, p->half);\n", ""},
	{"answers come to ports of tokens", "!own && bpf_ntohs", "bpf_ntohs"},
	{"what a token covers ends at the port", " | (__u64)t->protocol << 48;", ";"},
	{"deny lists end at the /24", "bits = (*word >> ((slot & 31) * 2)) & 3;", "bits = (*word >> ((slot & 31) * 2)) & 2;"},
	{"networks of IPv6 are not denied", "t->deny_trie4 : t->deny_trie6", "t->deny_trie4 : 0"},
	{"SYN and FIN together", "(p->flags & (TCP_FIN | TCP_RST))", "(p->flags & TCP_RST)"},
}

// Every mutant is caught by the differential test, most within some thousand
// packets. The short run tries the first six.
func TestMutantsAreCaught(t *testing.T) {
	needBPF(t)
	clang, err := exec.LookPath("clang-14")
	if err != nil {
		t.Skip("NOT TESTED: clang-14 is not here")
	}
	inNetns(t)
	cfg, m := newWorld(t)
	src, err := os.ReadFile("src/guard.bpf.c")
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range mutants {
		if n := strings.Count(string(src), k.from); n != 1 {
			t.Errorf("%s: its text stands %d times in the source", k.name, n)
			continue
		}
		if i >= 6 && os.Getenv("YUMEN_LONG") != "1" {
			continue
		}
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS("src")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "guard.bpf.c"), []byte(strings.Replace(string(src), k.from, k.to, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		spec, err := ebpf.LoadCollectionSpec(compile(t, clang, dir))
		if err != nil {
			t.Fatal(err)
		}
		m.revoked, m.tickets, m.knocked, m.flows = nil, map[[8]byte]*modelTicket{}, map[modelOpening]*modelKnocked{}, map[modelOpening][8]byte{}
		g := openWorldOf(t, spec, cfg, m)
		_, err = compare(t, g, m, uint64(i), 200_000)
		g.Close()
		var d *disagreement
		if !errors.As(err, &d) {
			t.Errorf("%s: not caught in 200000 packets (%v)", k.name, err)
			continue
		}
		t.Logf("%s: caught by packet %d: model %s, program %s", k.name, d.n, d.want, d.got)
	}
}
