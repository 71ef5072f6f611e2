package spool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// load of the tests of faults: some appenders on every class. stop waits for
// them and returns what was acknowledged to them.
func appenders(s *Spool, size int) (stop func() [NumClasses]spans) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var acked [NumClasses]spans
	var end atomic.Bool
	for w := range 8 {
		c := Class(w) % NumClasses
		wg.Go(func() {
			for !end.Load() {
				seq, err := s.Append(context.Background(), c, []byte(fmt.Sprintf("%s %0*d", c, size, 7)))
				if err != nil {
					time.Sleep(time.Millisecond)
					continue
				}
				mu.Lock()
				acked[c].add(seq, seq)
				mu.Unlock()
			}
		})
	}
	return func() [NumClasses]spans {
		end.Store(true)
		wg.Wait()
		return acked
	}
}

// waitingIn returns the numbers of the records that wait.
func waitingIn(t testing.TB, s *Spool, c Class) (here spans) {
	t.Helper()
	for _, r := range all(t, s, c) {
		here.add(r.Seq, r.Seq)
	}
	return here
}

func TestR4_PowerCutLosesNothingAcknowledged(t *testing.T) {
	d := newDisk(4)
	cfg := config(d)
	cfg.SegmentBytes = 32 << 10
	cfg.Caps = [NumClasses]int64{1 << 30, 1 << 30, 1 << 30, 1 << 30}
	var acked, sent [NumClasses]spans
	total := uint64(0)
	for cycle := range cycles(100, 1000) {
		cfg.fs = d
		s := mustOpen(t, cfg)
		for c := range NumClasses {
			here := waitingIn(t, s, c)
			for _, p := range acked[c] {
				if c.lazy() { // promised only after its window: what Next gave
					continue
				}
				for _, lost := range here.without(p.from, p.to) {
					if gone := sent[c].without(lost.from, lost.to); len(gone) > 0 {
						t.Fatalf("cycle %d: %s: acknowledged and lost: %v", cycle, c, gone)
					}
				}
			}
			last := s.Stats().Class[c].LastSeq
			if p, err := s.Prove(c, 1, last); err != nil || len(p.Unexplained) > 0 {
				t.Fatalf("cycle %d: %s: proof %+v, %v", cycle, c, p, err)
			}
			for i, p := range here { // a receiver takes some
				if i%2 == 0 {
					for seq := p.from; seq <= p.to; seq += 2 {
						s.Ack(c, seq)
						sent[c].add(seq, seq)
					}
				}
			}
		}
		stop := appenders(s, 100)
		time.Sleep(time.Duration(rand.IntN(4000)) * time.Microsecond)
		next := d.cut()
		for c, a := range stop() {
			for _, p := range a {
				if overlapsSpan(acked[c], p) {
					t.Fatalf("cycle %d: %s: %v was given twice", cycle, Class(c), p)
				}
				if Class(c) != Audit { // numbers of a lazy class may come again
					acked[c].add(p.from, p.to)
				}
				total += p.to - p.from + 1
			}
		}
		s.Close()
		d = next
	}
	t.Logf("%d acknowledged, 0 lost", total)
}

func overlapsSpan(s spans, p span) bool {
	i := s.find(p.from)
	return i < len(s) && s[i].from <= p.to
}

// What Next gave of a lazy class is on the disk: its number never comes again
// for another record.
func TestPowerCutKeepsWhatWasSeen(t *testing.T) {
	d := newDisk(5)
	cfg := config(d)
	seen := map[uint64]string{}
	for cycle := range cycles(40, 120) {
		cfg.fs = d
		s := mustOpen(t, cfg)
		for _, r := range all(t, s, Audit) {
			if was, ok := seen[r.Seq]; ok && was != string(r.Payload) {
				t.Fatalf("cycle %d: number %d was %q and is %q", cycle, r.Seq, was, r.Payload)
			}
		}
		for i := range rand.IntN(200) {
			mustAppend(t, s, Audit, fmt.Sprint(cycle, " ", i))
			if i%16 == 0 {
				for _, r := range all(t, s, Audit) {
					seen[r.Seq] = string(r.Payload)
				}
			}
		}
		next := d.cut()
		s.Close()
		d = next
	}
	if len(seen) == 0 {
		t.Fatal("nothing was seen")
	}
}

func TestR7_FailedSyncGoesToAnotherSegment(t *testing.T) {
	d := newDisk(7)
	var fail atomic.Int32
	d.failSync = func(name string) error {
		if strings.HasSuffix(name, ".seg") && fail.Add(-1) >= 0 {
			return syscall.EIO
		}
		return nil
	}
	cfg := config(d)
	faults := atomic.Int32{}
	cfg.Event = func(e Event) {
		if e.Kind == DiskFault {
			faults.Add(1)
		}
	}
	s := mustOpen(t, cfg)
	for _, c := range []Class{Alert, Audit} {
		mustAppend(t, s, c, "before")
		settleAudit(s, c, 1)
		fail.Store(1)
		mustAppend(t, s, c, "during")
		settleAudit(s, c, 2)
		if n := len(d.segments(c)); n != 2 {
			t.Errorf("%s: %d segments after a failed sync, want 2: the one that failed is never written again", c, n)
		}
		mustAppend(t, s, c, "after")
	}
	if faults.Load() != 2 {
		t.Errorf("%d faults were reported, want 2", faults.Load())
	}
	settleAudit(s, Audit, 3)
	cut := d.cut() // what was acknowledged is on the platter, not only in memory
	s.Close()
	cfg.fs = cut
	s = mustOpen(t, cfg)
	defer mustClose(t, s)
	for _, c := range []Class{Alert, Audit} {
		got := ""
		for _, r := range all(t, s, c) {
			got += string(r.Payload) + " "
		}
		if got != "before during after " {
			t.Errorf("%s: got %q", c, got)
		}
	}
}

// A disk that fails for good: nothing is acknowledged, nothing hangs, and when
// it comes back every number is explained.
func TestR7_DeadDiskAcknowledgesNothing(t *testing.T) {
	d := newDisk(8)
	var fail atomic.Bool
	d.failSync = func(name string) error {
		if strings.HasSuffix(name, ".seg") && fail.Load() {
			return syscall.EIO
		}
		return nil
	}
	s := mustOpen(t, config(d))
	mustAppend(t, s, Alert, "before")
	fail.Store(true)
	for range 3 {
		if seq, err := s.Append(context.Background(), Alert, []byte("during")); !errors.Is(err, syscall.EIO) {
			t.Errorf("append on a dead disk: %d, %v", seq, err)
		}
	}
	fail.Store(false)
	after := mustAppend(t, s, Alert, "after")
	waitFor(t, "the gap", func() bool { return s.Stats().Class[Alert].Pending == 3 })
	var payloads string // of the records: the keeper may store the gap before or behind "after"
	var lost uint64
	for _, r := range all(t, s, Alert) {
		if r.Gaps == nil {
			payloads += string(r.Payload) + " "
		}
		for _, g := range r.Gaps {
			lost += g.Count
		}
	}
	if payloads != "before after " || lost != 3 || s.Stats().Class[Alert].Dropped != 3 {
		t.Errorf("got %q and %d lost, stats %+v", payloads, lost, s.Stats().Class[Alert])
	}
	if p, err := s.Prove(Alert, 1, after); err != nil || !p.Whole() || len(p.Gaps) != 1 {
		t.Errorf("proof %+v, %v", p, err)
	}
	mustClose(t, s)
}
