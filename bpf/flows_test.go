package bpf

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// flowTable is a guard with room for n flows, and what opens and tries them.
func flowTable(t *testing.T, n int) (g *Guard, open, passes func(source string, from int) bool) {
	needBPF(t)
	g = mustOpen(t, Config{Interface: "lo", TokenUDP: []uint16{8443}, Uses: Rate{10_000_000, 10_000_000}, PinDir: t.TempDir(), Sizes: Sizes{Openings: n}})
	ticket := Ticket{Alias: [8]byte{0x90, 1}, Key: [16]byte{1, 2}, Until: Now() + time.Hour, Port: 8443}
	if err := g.AddTicket(ticket); err != nil {
		t.Fatal(err)
	}
	var counter uint32
	open = func(source string, from int) bool {
		counter++
		return g.passes(t, frame(source, 17, datagram(uint16(from), 8443, tokenOf(ticket, counter, 8443, 17))))
	}
	passes = func(source string, from int) bool {
		return g.passes(t, frame(source, 17, datagram(uint16(from), 8443, []byte("later"))))
	}
	return g, open, passes
}

// Three quarters of the table hold what was opened, but for few: a flow has two
// buckets to stand in. When there is no room, what was silent the longest goes.
func TestFlowsHaveRoom(t *testing.T) {
	const room = 1024
	_, open, passes := flowTable(t, room)
	count := func(source string, n int) (found int) {
		for i := range n {
			if passes(source, 1000+i) {
				found++
			}
		}
		return found
	}
	fill := func(source string, n int) {
		for i := range n {
			if !open(source, 1000+i) {
				t.Fatalf("flow %d of %s does not open", i, source)
			}
		}
	}
	const many = room * 3 / 4
	fill("198.51.100.1", many)
	n := count("198.51.100.1", many)
	t.Logf("%d of %d flows are open in a table for %d", n, many, room)
	if n < many*93/100 {
		t.Errorf("%d of %d flows are open in a table for %d", n, many, room)
	}
	time.Sleep(400 * time.Millisecond) // two moments at the longest
	fill("198.51.100.2", room/4)
	if n := count("198.51.100.2", room/4); n < room/4-4 {
		t.Errorf("%d of %d new flows are open: an old one should have gone", n, room/4)
	}
}

// A flow that was silent too long is closed, and its slot is free again; whose
// token comes then opens anew.
func TestSilentFlowsClose(t *testing.T) {
	t.Parallel()
	needBPF(t)
	g := mustOpen(t, Config{Interface: "lo", TokenUDP: []uint16{8443}, FlowIdle: time.Second, PinDir: t.TempDir(), Sizes: Sizes{Openings: 64}})
	ticket := Ticket{Alias: [8]byte{0x90, 1}, Key: [16]byte{1, 2}, Until: Now() + time.Hour, Port: 8443}
	if err := g.AddTicket(ticket); err != nil {
		t.Fatal(err)
	}
	first := func(counter uint32) []byte {
		return frame("198.51.100.1", 17, datagram(5, 8443, tokenOf(ticket, counter, 8443, 17)))
	}
	later := frame("198.51.100.1", 17, datagram(5, 8443, []byte("later")))
	if !g.passes(t, first(1)) || !g.passes(t, later) {
		t.Fatal("the token opens nothing")
	}
	live := func() int { return g.flows.sweep(g.tune.load32(tuneClock), moments(time.Second), func(uint64) {}) }
	if n := live(); n != 1 {
		t.Errorf("%d flows stand in the table, not 1", n)
	}
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if !g.passes(t, later) {
			t.Fatal("a flow that is used closes")
		}
	}
	time.Sleep(1500 * time.Millisecond) // a moment is up to 160 ms
	if g.passes(t, later) {
		t.Error("a silent flow is open")
	}
	if !g.passes(t, first(2)) || !g.passes(t, later) {
		t.Error("a new token does not open a closed flow")
	}
	time.Sleep(1500 * time.Millisecond)
	other := frame("198.51.100.1", 17, datagram(6, 8443, tokenOf(ticket, 3, 8443, 17)))
	if !g.passes(t, other) { // writes the program's clock
		t.Error("another token does not open")
	}
	if n := live(); n != 1 {
		t.Errorf("%d flows stand in the table after one was silent, not 1", n)
	}
}

// What a ticket opened closes at the ticket's time, also while nobody takes the
// ticket away.
func TestFlowsEndWithTheirTicket(t *testing.T) {
	t.Parallel()
	needBPF(t)
	g := mustOpen(t, Config{Interface: "lo", TokenUDP: []uint16{8443}, PinDir: t.TempDir(), Sizes: Sizes{Openings: 64}})
	ticket := Ticket{Alias: [8]byte{0x90, 1}, Key: [16]byte{1, 2}, Until: Now() + time.Second, Port: 8443}
	if err := g.AddTicket(ticket); err != nil {
		t.Fatal(err)
	}
	later := frame("198.51.100.1", 17, datagram(5, 8443, []byte("later")))
	if !g.passes(t, frame("198.51.100.1", 17, datagram(5, 8443, tokenOf(ticket, 1, 8443, 17)))) || !g.passes(t, later) {
		t.Fatal("the token opens nothing")
	}
	for end := time.Now().Add(10 * time.Second); g.passes(t, later); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the flow outlives its ticket's time")
		}
	}
	if now := Now(); now < ticket.Until-50*time.Millisecond {
		t.Errorf("closed %v before its time", ticket.Until-now)
	}
}

// The prefilter is made anew from the flows that are open: their sources stay
// known, in either half.
func TestOpenSourcesStayKnown(t *testing.T) {
	g, open, passes := flowTable(t, 1024)
	for i := range 100 {
		open(fmt.Sprint("198.51.100.", i+1), 7)
	}
	for round := range 4 {
		if err := g.rebuildKnown(); err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			if !passes(fmt.Sprint("198.51.100.", i+1), 7) {
				t.Fatalf("round %d: the flow of source %d is closed", round, i)
			}
		}
	}
}

// A guard that another version left pinned is replaced by one update of its
// link, and its pins go.
func TestS38_PinsOfAnotherVersionAreTakenOver(t *testing.T) {
	cfg, g := pinnedGuard(t)
	info, err := g.link.Info()
	if err != nil {
		t.Fatal(err)
	}
	g.Close()
	now, before := cfg.folder(), filepath.Join(cfg.PinDir, "yumen", "v0", "g0")
	if err := os.MkdirAll(before, 0o700); err != nil {
		t.Fatal(err)
	}
	pins, err := os.ReadDir(now)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pins {
		if err := os.Rename(filepath.Join(now, p.Name()), filepath.Join(before, p.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if !Pinned(cfg.PinDir, "g0") {
		t.Error("pins of another version do not count")
	}
	g = mustOpen(t, cfg)
	if s := g.State(); !s.Attached || !s.Pinned {
		t.Fatalf("not taken over: %+v", s)
	}
	if err := g.Attach(); err != nil {
		t.Fatal(err)
	}
	next, err := g.link.Info()
	if err != nil || next.ID != info.ID || next.Program == info.Program {
		t.Errorf("link %d of program %d, then link %d of program %d: %v", info.ID, info.Program, next.ID, next.Program, err)
	}
	if _, err := os.Stat(before); !os.IsNotExist(err) {
		t.Errorf("pins of before are there: %v", err)
	}
	if m, err := ebpf.LoadPinnedMap(filepath.Join(now, "flows"), nil); err != nil {
		t.Error(err)
	} else {
		m.Close()
	}
	g.Close()
	if there, err := Remove(cfg.PinDir, "g0"); err != nil || !there {
		t.Errorf("remove: %v, %v", there, err)
	}
}

// Whatever secret is drawn, neighbours and successive ports spread over the
// table as by chance: at half of its room next to none is displaced.
func TestFlowsSpread(t *testing.T) {
	const room, rounds = 1024, 12
	lost := 0
	for range rounds {
		g, open, passes := flowTable(t, room)
		for i := range room / 4 {
			open(fmt.Sprint("198.51.100.", i), 7)
			open("203.0.113.9", 1000+i)
		}
		for i := range room / 4 {
			if !passes(fmt.Sprint("198.51.100.", i), 7) {
				lost++
			}
			if !passes("203.0.113.9", 1000+i) {
				lost++
			}
		}
		g.Close()
	}
	t.Logf("%d of %d flows displaced", lost, rounds*room/2)
	if lost > rounds*room/2/50 {
		t.Errorf("%d of %d flows displaced", lost, rounds*room/2)
	}
}
