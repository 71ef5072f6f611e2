package spool

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// R5: whatever is done to the files, opening works, no record comes that was
// not appended, and every record that does not come is in a gap.
func TestR5_DamageIsFoundAndNamed(t *testing.T) {
	const records = 400
	payload := func(seq uint64) string { return fmt.Sprintf("%0*d", 20+int(seq%300), seq) }
	kinds := map[string]func(r *rand.Rand, b []byte) []byte{
		"bit flip": func(r *rand.Rand, b []byte) []byte {
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			return b
		},
		"truncation": func(r *rand.Rand, b []byte) []byte { return b[:r.IntN(len(b))] },
		"zero page": func(r *rand.Rand, b []byte) []byte {
			at := r.IntN(len(b)) &^ 4095
			if len(bytes.Trim(b[at:min(at+4096, len(b))], "\x00")) == 0 {
				b[0] ^= 1 // it was zero already
			}
			clear(b[at:min(at+4096, len(b))])
			return b
		},
		"two pages swapped": func(r *rand.Rand, b []byte) []byte {
			if len(b) < 3*4096 {
				b[0] ^= 1
				return b
			}
			page := bytes.Clone(b[4096:8192])
			copy(b[4096:8192], b[8192:12288])
			copy(b[8192:12288], page)
			return b
		},
	}
	for kind, change := range kinds {
		for _, target := range []string{"segment", "cursor"} {
			for round := range cycles(100, 1000) / 4 {
				r := rand.New(rand.NewPCG(uint64(round), 5))
				d := newDisk(uint64(round))
				cfg := config(d)
				cfg.SegmentBytes = 16 << 10
				s := mustOpen(t, cfg)
				for range records {
					if _, err := s.Append(context.Background(), Alert, []byte(payload(s.Stats().Class[Alert].LastSeq+1))); err != nil {
						t.Fatal(err)
					}
				}
				ackedTo := uint64(r.IntN(records / 2))
				for seq := range ackedTo {
					s.Ack(Alert, seq+1)
				}
				mustClose(t, s)
				name := "/s/alert/cursor"
				if target == "segment" {
					names := d.segments(Alert)
					name = names[r.IntN(len(names))]
				}
				d.spoil(t, name, func(b []byte) []byte { return change(r, b) })

				found := 0
				cfg.Event = func(e Event) {
					if e.Kind == Corruption || e.Kind == Dropped || e.Kind == TornTail {
						found++
					}
				}
				s = mustOpen(t, cfg)
				got, lost := all(t, s, Alert), spans{}
				waitFor(t, "gaps on disk", func() bool {
					s.logs[Alert].mu.Lock()
					defer s.logs[Alert].mu.Unlock()
					return len(s.logs[Alert].pending) == 0 && len(s.logs[Alert].unsynced) == 0
				})
				here := spans{}
				for _, rec := range append(got, all(t, s, Alert)...) {
					for _, g := range rec.Gaps {
						lost.add(g.From, g.To)
					}
					if rec.Gaps == nil && string(rec.Payload) != payload(rec.Seq) {
						t.Fatalf("%s of %s, round %d: record %d was invented: %q", kind, target, round, rec.Seq, rec.Payload)
					}
					here.add(rec.Seq, rec.Seq)
				}
				for _, p := range here.without(ackedTo+1, records) {
					if gone := lost.without(p.from, p.to); len(gone) > 0 {
						t.Fatalf("%s of %s, round %d: %v are gone without a gap", kind, filepath.Base(name), round, gone)
					}
				}
				if p, err := s.Prove(Alert, 1, records); err != nil || len(p.Unexplained) > 0 {
					t.Fatalf("%s of %s, round %d: proof %+v, %v", kind, name, round, p, err)
				} else if found == 0 && p.Whole() {
					t.Fatalf("%s of %s, round %d: was not found", kind, name, round)
				}
				if dropped := s.Stats().Class[Alert].Dropped; dropped != lost.count() {
					t.Fatalf("%s of %s, round %d: %d dropped, gaps of %d", kind, name, round, dropped, lost.count())
				}
				if n := lost.count(); target == "segment" && n > 120 {
					t.Errorf("%s, round %d: %d records lost by damage in one segment", kind, round, n)
				}
				mustAppend(t, s, Alert, "goes on")
				mustClose(t, s)
			}
		}
	}
}

// A record under another key, or copied from another segment, is not believed.
func TestForeignFramesAreNotBelieved(t *testing.T) {
	d := newDisk(1)
	cfg := config(d)
	s := mustOpen(t, cfg)
	for i := range 10 {
		mustAppend(t, s, Alert, fmt.Sprint("one ", i))
	}
	mustClose(t, s)
	first := d.segments(Alert)[0]
	s = mustOpen(t, cfg)
	mustAppend(t, s, Alert, "two")
	mustClose(t, s)
	second := d.segments(Alert)[1]
	var stolen []byte
	d.spoil(t, first, func(b []byte) []byte { stolen = bytes.Clone(b[headerSize:]); return b })
	d.spoil(t, second, func(b []byte) []byte { return append(b[:headerSize:headerSize], stolen...) })
	s = mustOpen(t, cfg)
	defer mustClose(t, s)
	seen := map[uint64]string{}
	for _, r := range all(t, s, Alert) {
		if seen[r.Seq] != "" {
			t.Errorf("number %d comes twice", r.Seq)
		}
		if r.Gaps == nil && string(r.Payload) != fmt.Sprint("one ", r.Seq-1) {
			t.Errorf("record %d was invented: %q", r.Seq, r.Payload)
		}
		seen[r.Seq] = string(r.Payload)
	}
	if s.Stats().Class[Alert].Dropped != 1 {
		t.Errorf("dropped %d, want 1: the record that was overwritten", s.Stats().Class[Alert].Dropped)
	}
}

// Bytes that rot while the spool is open are found when they are read.
func TestDamageFoundWhileReading(t *testing.T) {
	d := newDisk(1)
	s := mustOpen(t, config(d))
	defer mustClose(t, s)
	for i := range 20 {
		mustAppend(t, s, Alert, fmt.Sprint(i))
	}
	d.spoil(t, d.segments(Alert)[0], func(b []byte) []byte { b[headerSize+5*(frameSize+tagSize+1)+frameSize] ^= 4; return b })
	got := all(t, s, Alert)
	if len(got) < 19 || got[5].Seq != 7 {
		t.Fatalf("got %d records, the sixth %+v; want 19 without number 6", len(got), got[5])
	}
	waitFor(t, "the gap", func() bool { r := all(t, s, Alert); return r[len(r)-1].Gaps != nil })
	r := all(t, s, Alert)
	if g := r[len(r)-1].Gaps; len(g) != 1 || g[0].From != 6 || g[0].To != 6 || g[0].Count != 1 || g[0].Reason != Damaged {
		t.Errorf("gap %+v", g)
	}
}

// The scanner: no panic, and nothing that does not open under the key is given
// to anybody.
func FuzzScanner(f *testing.F) {
	k := &keys{state: testKey, seal: config(nil).Seal}
	h := header{class: Alert, ordinal: 1, first: 1}
	aead, err := k.segment(&h)
	if err != nil {
		f.Fatal(err)
	}
	b := h.encode(k)
	written := map[uint64]string{}
	for seq := uint64(1); seq <= 6; seq++ {
		written[seq] = fmt.Sprint("payload ", seq)
		b = appendFrame(b, aead, Alert, kindRecord, seq, 1, []byte(written[seq]))
	}
	gaps := appendFrame(bytes.Clone(b), aead, Alert, kindGaps, 7, 1, appendGaps(nil, []Gap{{From: 1, To: 2, Count: 1, Reason: Missing}}))
	f.Add(b)
	f.Add(gaps)
	f.Add([]byte("0"))
	f.Add(b[:len(b)-3])
	f.Add(append(bytes.Clone(b[:200]), b[300:]...))
	f.Add(bytes.Repeat([]byte("YM\x00\x00\x00\x00\x01"), 500))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d := newDisk(1)
		d.now["x"] = &inode{data: raw}
		file, _ := d.Open("x")
		seg, holes, err := load(k, h, "x", file, 1<<16)
		if err != nil {
			t.Fatal(err)
		}
		if seg.end > seg.size || int64(seg.count)*(frameSize+tagSize) > int64(len(raw)) || len(holes) > len(raw) {
			t.Fatalf("segment %+v of %d bytes", seg, len(raw))
		}
		l := newLog(&Spool{cfg: Config{MaxRecord: 1 << 16, fs: d, Caps: [NumClasses]int64{1 << 20}}, keys: *k}, Alert)
		for _, r := range seg.runs {
			r.to = min(r.to, r.from+100)
			got, _, err := l.read(&want{seg: seg, off: headerSize, last: 0, limit: seg.end, from: r.from, to: r.to})
			if err != nil {
				t.Fatal(err)
			}
			for _, rec := range got {
				if rec.Gaps == nil && written[rec.Seq] != string(rec.Payload) {
					t.Fatalf("record %d was invented: %q", rec.Seq, rec.Payload)
				}
			}
		}
	})
}

func FuzzCursor(f *testing.F) {
	k := &keys{state: testKey}
	c := cursor{next: 9, done: spans{{1, 3}, {5, 5}}, gaps: []Gap{{From: 2, To: 2, Count: 1, Reason: OverCap}}}
	f.Add(c.encode(k, Alert), true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, raw []byte, sign bool) {
		if sign {
			raw = append(bytes.Clone(raw), k.mac("cursor", raw)...)
		}
		if c, err := parseCursor(k, Alert, raw); err == nil && !sign && !bytes.Equal(c.encode(k, Alert), raw) {
			t.Fatal("another cursor was believed")
		}
	})
}
