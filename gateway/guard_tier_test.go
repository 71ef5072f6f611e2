package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/bpf"
)

type named struct {
	tier
	name   string
	attach error
	given  *[]string // what it was given, in order
	ran    chan string
}

func (n named) note(what string) {
	if n.given != nil {
		*n.given = append(*n.given, what)
	}
}

func (n named) Deny(all []netip.Prefix) error {
	n.note(fmt.Sprint(n.name, " deny ", len(all)))
	return nil
}

func (n named) AddTicket(k bpf.Ticket) error {
	n.note(fmt.Sprint(n.name, " ticket ", k.Alias[7]))
	return nil
}

func (n named) RemoveTicket(alias [8]byte) error {
	n.note(fmt.Sprint(n.name, " without ", alias[7]))
	return nil
}
func (n named) Attach() error { n.note(n.name + " attach"); return n.attach }
func (n named) Close() error  { n.ran <- n.name + " closed"; return nil }
func (n named) Run(ctx context.Context, _ func(bpf.Knock), _ func(bpf.Drop)) error {
	n.ran <- n.name
	<-ctx.Done()
	return ctx.Err()
}

// A program that loads but cannot attach gives way to nftables, which gets what
// the program was given; its work goes on there. Only where nothing else was
// chosen, and only for a lack of the system's.
func TestTierThatCannotAttach(t *testing.T) {
	busy := fmt.Errorf("attach guard: %w: device or resource busy", bpf.ErrUnsupported)
	open := func(mode bpf.Mode, attach error) (tier, *[]string, chan string) {
		given, ran := &[]string{}, make(chan string, 4)
		of := func(name string, attach error) opener {
			return func(bpf.Config) (tier, error) { return named{name: name, attach: attach, given: given, ran: ran}, nil }
		}
		got, err := openTier(bpf.Config{Mode: mode, Logger: zap.NewNop()}, of("xdp", attach), of("nft", nil))
		if err != nil {
			t.Fatal(err)
		}
		return got, given, ran
	}
	got, given, ran := open(bpf.Auto, busy)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- got.Run(ctx, nil, nil) }()
	if name := <-ran; name != "xdp" {
		t.Fatalf("%s runs before it attaches", name)
	}
	err := errors.Join(got.Deny(make([]netip.Prefix, 3)), got.AddTicket(bpf.Ticket{Alias: [8]byte{7: 1}}), got.AddTicket(bpf.Ticket{Alias: [8]byte{7: 2}}), got.RemoveTicket([8]byte{7: 1}), got.Attach())
	if err != nil {
		t.Fatal(err)
	}
	want := "xdp deny 3, xdp ticket 1, xdp ticket 2, xdp without 1, xdp attach, nft deny 3, nft ticket 2, nft attach"
	if have := strings.Join(*given, ", "); have != want {
		t.Errorf("the tiers were given:\n%s, not\n%s", have, want)
	}
	if now, why := running(got); now.(named).name != "nft" || !errors.Is(why, busy) {
		t.Errorf("%v runs, because of %v", now.(named).name, why)
	}
	if name := <-ran; name != "xdp closed" {
		t.Errorf("%s, before the first tier was closed", name)
	}
	if name := <-ran; name != "nft" {
		t.Errorf("%s runs on", name)
	}
	cancel()
	<-done
	for _, c := range []struct {
		mode bpf.Mode
		err  error
	}{{bpf.Native, busy}, {bpf.Generic, busy}, {bpf.Auto, errors.New("interface is gone")}} {
		got, _, _ := open(c.mode, c.err)
		if err := got.Attach(); !errors.Is(err, c.err) {
			t.Errorf("mode %q: %v, not %v", c.mode, err, c.err)
		}
		if now, _ := running(got); now.(named).name != "xdp" {
			t.Errorf("mode %q, %v: nftables took over", c.mode, c.err)
		}
	}
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
		now, _ := running(got)
		if n := now.(named).name; n != c.want {
			t.Errorf("mode %q: %s, not %s", c.mode, n, c.want)
		}
	}
}
