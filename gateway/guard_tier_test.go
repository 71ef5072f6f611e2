package gateway

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/yumen-zt/yumen/bpf"
)

type named struct {
	tier
	name string
}

// Without a choice the guard runs in XDP, in nftables only where XDP cannot
// run, and says what both lack where neither can.
func TestTierIsChosen(t *testing.T) {
	works := func(name string) opener { return func(bpf.Config) (tier, error) { return named{name: name}, nil } }
	lacks := func(text string) opener {
		return func(bpf.Config) (tier, error) { return nil, fmt.Errorf("%w: %s", bpf.ErrUnsupported, text) }
	}
	broken := func(bpf.Config) (tier, error) { return nil, errors.New("guard maps are full") }
	for _, c := range []struct {
		mode     bpf.Mode
		xdp, nft opener
		want     string
	}{
		{bpf.Auto, works("xdp"), works("nft"), "xdp"},
		{bpf.Native, works("xdp"), works("nft"), "xdp"},
		{bpf.Nftables, works("xdp"), works("nft"), "nft"},
		{bpf.Auto, lacks("no BPF"), works("nft"), "nft"},
		{bpf.Auto, broken, works("nft"), "maps are full"},
		{bpf.Generic, lacks("no BPF"), works("nft"), "no BPF"},
		{bpf.Auto, lacks("no BPF"), lacks("no nft"), "no BPF|no nft"},
		{bpf.Nftables, works("xdp"), lacks("no nft"), "no nft"},
	} {
		got, err := openTier(bpf.Config{Mode: c.mode}, c.xdp, c.nft)
		if err != nil {
			for want := range strings.SplitSeq(c.want, "|") {
				if got != nil || !strings.Contains(err.Error(), want) {
					t.Errorf("mode %q: %v, %v; want %s", c.mode, got, err, want)
				}
			}
			continue
		}
		if n := got.(named).name; n != c.want {
			t.Errorf("mode %q: %s, not %s", c.mode, n, c.want)
		}
	}
}
