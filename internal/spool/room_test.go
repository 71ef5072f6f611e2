package spool

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// gapsOf returns the sum of the counts of all gap records that wait, and the
// numbers that they name.
func gapsOf(records []Record) (count uint64, named spans) {
	for _, r := range records {
		for _, g := range r.Gaps {
			count += g.Count
			named.add(g.From, g.To)
		}
	}
	return count, named
}

// quiet waits until every gap is stored.
func quiet(t testing.TB, s *Spool, c Class) {
	t.Helper()
	l := s.logs[c]
	waitFor(t, "gaps on disk", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.pending) == 0 && len(l.unsynced) == 0 && l.open == nil && l.stored == l.ticket
	})
}

func TestR24_DropsEqualGapsExactly(t *testing.T) {
	for _, c := range []Class{Alert, Audit} {
		d := newDisk(24)
		cfg := config(d)
		cfg.Caps = [NumClasses]int64{256 << 10, 256 << 10, 256 << 10, 256 << 10}
		dropped := uint64(0)
		var settled spans // acknowledged by us
		last := uint64(0)
		for opening := range 4 {
			s := mustOpen(t, cfg)
			l := s.logs[c]
			for i := range 3000 {
				last = mustAppend(t, s, c, fmt.Sprintf("%0300d", i))
				l.mu.Lock()
				size, segs := l.size(), len(l.segs)
				l.mu.Unlock()
				if size > l.cap+l.most {
					t.Fatalf("%d bytes in %d segments, at most %d and a segment of %d", size, segs, l.cap, l.most)
				}
				if i%7 == 0 { // receivers take some, out of order
					if got, err := s.Next(c, last-20, 1); err == nil && len(got) == 1 && got[0].Gaps == nil {
						s.Ack(c, got[0].Seq)
						settled.add(got[0].Seq, got[0].Seq)
					}
				}
			}
			quiet(t, s, c)
			dropped += s.Stats().Class[c].Dropped
			records := all(t, s, c)
			count, named := gapsOf(records)
			if count != dropped || count == 0 {
				t.Fatalf("%s, opening %d: %d dropped, gap records of %d", c, opening, dropped, count)
			}
			here := append(spans(nil), settled...)
			for _, p := range named {
				here.add(p.from, p.to)
			}
			for _, r := range records {
				here.add(r.Seq, r.Seq)
			}
			if lost := here.without(1, last); len(lost) > 0 {
				t.Fatalf("%s, opening %d: neither here nor in a gap: %v", c, opening, lost)
			}
			if p, err := s.Prove(c, 1, last); err != nil || !p.Whole() || len(p.Gaps) == 0 {
				t.Fatalf("%s, opening %d: proof %+v, %v", c, opening, p, err)
			}
			mustClose(t, s)
		}
	}
}

func TestTheLowestClassGoesFirst(t *testing.T) {
	d := newDisk(1)
	cfg := config(d)
	cfg.MaxBytes = 1 << 20
	cfg.SegmentBytes = 64 << 10
	order := []Class{}
	cfg.Event = func(e Event) {
		if e.Kind == Dropped && (len(order) == 0 || order[len(order)-1] != e.Class) {
			order = append(order, e.Class)
		}
	}
	s := mustOpen(t, cfg)
	fill := func(c Class, n int) {
		for range n {
			mustAppend(t, s, c, fmt.Sprintf("%01000d", 1))
		}
	}
	fill(Status, 300)
	fill(Audit, 300)
	fill(Identity, 600)
	fill(Alert, 600)
	for c := range NumClasses {
		quiet(t, s, c)
	}
	mustClose(t, s)
	if got := fmt.Sprint(order); got != "[status audit identity]" {
		t.Errorf("dropped in the order %s, want status, then audit, then identity", got)
	}
	s = mustOpen(t, cfg)
	defer mustClose(t, s)
	if got := s.Stats().Class[Alert].Pending; got != 600 {
		t.Errorf("%d alerts wait, want 600: none was dropped for a lower class", got)
	}
}

func TestTooLargeIsRefused(t *testing.T) {
	cfg := config(newDisk(1))
	cfg.MaxRecord = 1000
	s := mustOpen(t, cfg)
	defer mustClose(t, s)
	if _, err := s.Append(context.Background(), Alert, make([]byte, 1001)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("1001 bytes: %v", err)
	}
	if seq := mustAppend(t, s, Alert, string(make([]byte, 1000))); seq != 1 {
		t.Errorf("a refused record took a number: %d", seq)
	}
}

// fullDisk fills disk by hand and frees it, for the tests of full disks.
type fullDisk struct {
	fill, free func()
}

// A full disk: audit is refused and counted, alerts go to the reserve, then in
// the place of lower classes; nothing stored is lost; when there is space, all
// goes on.
func testFullDisk(t *testing.T, cfg Config, disk fullDisk) {
	s := mustOpen(t, cfg)
	defer func() { s.Close() }()
	if !s.Stats().Reserve {
		t.Fatal("no reserve")
	}
	acked := [NumClasses]spans{}
	try := func(c Class) error {
		seq, err := s.Append(context.Background(), c, []byte(fmt.Sprintf("%s %01000d", c, 1)))
		if err == nil {
			acked[c].add(seq, seq)
		}
		return err
	}
	for c := range NumClasses {
		for range 300 {
			if err := try(c); err != nil {
				t.Fatalf("%s on an empty disk: %v", c, err)
			}
		}
	}
	disk.fill()
	refused := 0
	for range 3000 {
		if err := try(Audit); errors.Is(err, ErrNoSpace) {
			refused++
		} else if err != nil {
			t.Fatalf("audit on a full disk: %v", err)
		}
	}
	if refused == 0 {
		t.Fatal("the disk is not full")
	}
	stored := 0
	for range 1500 { // more than the reserve holds
		if err := try(Alert); err == nil {
			stored++
		} else if !errors.Is(err, ErrNoSpace) {
			t.Fatalf("alert on a full disk: %v", err)
		}
	}
	if stored < 900 {
		t.Errorf("%d alerts were stored on a full disk with a reserve of 1 MiB", stored)
	}
	if st := s.Stats(); !st.Tight || st.Reserve {
		t.Errorf("stats of a full disk: tight %v, reserve in place %v", st.Tight, st.Reserve)
	}
	disk.free()
	begin := time.Now()
	waitFor(t, "audit after space came back", func() bool { return try(Audit) == nil })
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("R6: %v until audit went on", took)
	}
	waitFor(t, "the reserve", func() bool { return s.Stats().Reserve })
	for c := range NumClasses {
		if err := try(c); err != nil {
			t.Errorf("%s after space came back: %v", c, err)
		}
		quiet(t, s, c)
	}
	check := func(when string) {
		t.Helper()
		for c := range NumClasses {
			records := all(t, s, c)
			here := spans{}
			for _, r := range records {
				here.add(r.Seq, r.Seq)
			}
			count, named := gapsOf(records)
			last := s.Stats().Class[c].LastSeq
			for _, p := range named {
				here.add(p.from, p.to)
			}
			if lost := here.without(1, last); len(lost) > 0 {
				t.Errorf("%s, %s: neither here nor in a gap: %v; known %+v", when, c, lost, s.logs[c].known)
			}
			gaveWay := uint64(0)
			for _, p := range acked[c] {
				for _, r := range named {
					for seq := max(p.from, r.from); seq <= min(p.to, r.to); seq++ {
						gaveWay++
					}
				}
			}
			if gaveWay > 0 && c.vital() {
				t.Errorf("%s, %s: %d acknowledged records were dropped", when, c, gaveWay)
			}
			t.Logf("%s, %s: %d here, %d in gaps, %d of them stored before and dropped for alerts", when, c, len(records), count, gaveWay)
			if p, err := s.Prove(c, 1, last); err != nil || !p.Whole() {
				t.Errorf("%s, %s: proof %+v, %v", when, c, p, err)
			}
		}
	}
	for c := range NumClasses {
		if count, _ := gapsOf(all(t, s, c)); count != s.Stats().Class[c].Dropped {
			t.Errorf("%s: %d dropped, gaps of %d", c, s.Stats().Class[c].Dropped, count)
		}
	}
	check("at once")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, cfg)
	check("after opening again")
}

func TestR6_FullDiskInMemory(t *testing.T) {
	d := newDisk(6)
	cfg := config(d)
	cfg.Reserve, cfg.SegmentBytes = 1<<20, 256<<10
	d.limit = 8 << 20
	testFullDisk(t, cfg, fullDisk{
		fill: func() {
			f, err := d.Create("/filler")
			if err != nil {
				t.Fatal(err)
			}
			d.mu.Lock()
			rest := d.limit - d.used()
			d.mu.Unlock()
			if err := f.Allocate(rest); err != nil {
				t.Fatal(err)
			}
		},
		free: func() { d.Remove("/filler") },
	})
}

// A disk that is full already when the spool opens.
func TestR6_OpenOnAFullDisk(t *testing.T) {
	d := newDisk(6)
	d.limit = 1
	cfg := config(d)
	cfg.Reserve = 1 << 20
	s := mustOpen(t, cfg)
	defer mustClose(t, s)
	for c := range NumClasses {
		if _, err := s.Append(context.Background(), c, []byte("x")); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "free some") {
			t.Errorf("%s: %v", c, err)
		}
	}
	d.mu.Lock()
	d.limit = 0
	d.mu.Unlock()
	waitFor(t, "space", func() bool { return !s.Stats().Tight })
	for c := range NumClasses {
		if seq := mustAppend(t, s, c, "y"); seq < 2 {
			t.Errorf("%s: number %d", c, seq)
		}
		quiet(t, s, c)
		if count, _ := gapsOf(all(t, s, c)); count != 1 || s.Stats().Class[c].Dropped != 1 {
			t.Errorf("%s: gaps of %d, %d dropped, want 1", c, count, s.Stats().Class[c].Dropped)
		}
	}
}
