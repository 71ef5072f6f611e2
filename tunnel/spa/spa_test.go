package spa

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/permit"
	"github.com/yumen-zt/yumen/internal/reason"
)

const knockPort = 62201

var (
	start = time.Unix(1_800_000_100, 0)
	root  = permit.Root{7}
	want  = Wanted{8443, TCP}
)

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func setup() (*Book, permit.Ticket, *clock, *counters) {
	c := &clock{start}
	b := NewBook(knockPort, c.now)
	t := root.Times(start, time.Hour)[0].Ticket("GW", "DEV")
	b.Add("DEV", t)
	return b, t, c, &counters{}
}

// A genuine knock counts once; one that was seen, is old, of the future, for
// another port, cut, longer or altered in any bit, never (S20).
func TestS20_KnocksCountOnce(t *testing.T) {
	b, ticket, c, n := setup()
	k := makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t)
	for i := range len(k) * 8 {
		bad := bytes.Clone(k)
		bad[i/8] ^= 1 << (i % 8)
		if _, _, _, r := b.Knock(bad); r == reason.OK {
			t.Fatalf("bit %d flipped: accepted", i)
		}
	}
	for i := range len(k) {
		if _, _, _, r := b.Knock(k[:i]); r == reason.OK {
			t.Fatalf("%d bytes: accepted", i)
		}
	}
	if _, _, _, r := b.Knock(append(bytes.Clone(k), 0)); r == reason.OK {
		t.Error("a longer one: accepted")
	}
	w, alias, device, r := b.Knock(k)
	if r != reason.OK || w != want || alias != ticket.Alias || device != "DEV" {
		t.Fatalf("genuine: %v %x %q %v (the faults before must not cost it)", w, alias, device, r)
	}
	if _, _, _, r := b.Knock(k); r != reason.GuardTokenReplayed {
		t.Errorf("again: %v", r)
	}
	for _, d := range []time.Duration{-61 * time.Second, 61 * time.Second} {
		late := makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t.Add(d))
		if _, _, _, r := b.Knock(late); r != reason.GuardKnockRefused {
			t.Errorf("its time is %v away: %v", d, r)
		}
	}
	elsewhere := makeKnock(&ticket, n.next(&ticket, c.t), knockPort+1, want, c.t)
	if _, _, _, r := b.Knock(elsewhere); r != reason.GuardTokenForged {
		t.Errorf("for another knock port: %v", r)
	}
	c.t = ticket.Until
	if _, _, _, r := b.Knock(makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t)); r != reason.GuardTicketExpired {
		t.Errorf("after the ticket's end: %v", r)
	}
	c.t = start
	b.Remove(ticket.Alias)
	if _, _, _, r := b.Knock(makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t)); r != reason.GuardTicketUnknown {
		t.Errorf("after it was taken away: %v", r)
	}
}

// What was seen before a restart does not count after it (S20).
func TestS20_NoReplayOverARestart(t *testing.T) {
	b, ticket, c, n := setup()
	k := makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t)
	if _, _, _, r := b.Knock(k); r != reason.OK {
		t.Fatal(r)
	}
	c.t = c.t.Add(time.Second)
	b = NewBook(knockPort, c.now)
	b.Add("DEV", ticket)
	if _, _, _, r := b.Knock(k); r != reason.GuardTokenReplayed {
		t.Errorf("after a restart: %v", r)
	}
	if _, _, _, r := b.Knock(makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t)); r != reason.OK {
		t.Errorf("a fresh one: %v", r)
	}
}

// Knocks that a network reorders count, and each of the window once.
func TestWindow(t *testing.T) {
	var s seen
	for _, c := range []struct {
		n    uint32
		want bool
	}{{0, false}, {5, true}, {5, false}, {4, true}, {4, false}, {1, true}, {40, true}, {8, true}, {7, false}, {8, false}, {41, true}, {40, false}, {9, true}, {1 << 31, true}, {41, false}, {1<<31 - 32, true}, {1<<31 - 33, false}, {1<<32 - 1, true}, {1<<32 - 1, false}} {
		if got := s.take(c.n); got != c.want {
			t.Errorf("%d: %v", c.n, got)
		}
	}
}

func TestCountersRiseOverRestarts(t *testing.T) {
	_, ticket, c, n := setup()
	last := uint32(0)
	for range 100 {
		if v := n.next(&ticket, c.t); v <= last {
			t.Fatalf("%d after %d", v, last)
		} else {
			last = v
		}
	}
	c.t = c.t.Add(200 * time.Millisecond)
	if v := (&counters{}).next(&ticket, c.t); v <= last {
		t.Errorf("after a restart %d, not above %d", v, last)
	}
}

// What a knock opened in user space lets one connection in, from its source,
// for a while, and not after the ticket is gone.
func TestAdmissionInUserSpace(t *testing.T) {
	b, ticket, c, _ := setup()
	a, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	if b.Admit(a, 8443) {
		t.Error("admitted before any knock")
	}
	b.Open(a, 8443, ticket.Alias)
	if b.Admit(other, 8443) || b.Admit(a, 8444) {
		t.Error("another source, or another port, admitted")
	}
	if !b.Admit(netip.MustParseAddr("::ffff:192.0.2.1"), 8443) || b.Admit(a, 8443) {
		t.Error("not admitted once and only once")
	}
	b.Open(a, 8443, ticket.Alias)
	c.t = c.t.Add(OpenFor)
	if b.Admit(a, 8443) {
		t.Error("admitted too late")
	}
	b.Open(a, 8443, ticket.Alias)
	b.Remove(ticket.Alias)
	if b.Admit(a, 8443) {
		t.Error("admitted with a ticket that is gone")
	}
	for i := range maxOpen + 10 {
		b.Open(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1, ticket.Alias)
	}
	if len(b.open) > maxOpen {
		t.Errorf("%d openings", len(b.open))
	}
}

// One ticket cannot make the gateway work for ever.
func TestKnocksOfOneTicketAreLimited(t *testing.T) {
	b, ticket, c, n := setup()
	ok := 0
	for range 500 {
		if _, _, _, r := b.Knock(makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t)); r == reason.OK {
			ok++
		} else if r != reason.GuardTicketRate {
			t.Fatal(r)
		}
	}
	if ok != useBurst {
		t.Errorf("%d of 500 counted, %d expected", ok, useBurst)
	}
}

func FuzzKnock(f *testing.F) {
	b, ticket, c, n := setup()
	f.Add(makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t)[:60])
	f.Add(AppendToken(nil, &ticket, 9, knockPort, UDP))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, _, _, r := b.Knock(data); r == reason.OK {
			t.Errorf("accepted % x", data)
		}
	})
}
