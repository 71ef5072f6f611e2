package ctlclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

func TestOutboxDropsTheOldestAndCounts(t *testing.T) {
	m := NewMemory(MemoryConfig{Records: [NumClasses]int{ClassAlert: 3}, Bytes: [NumClasses]int64{ClassStatus: 10}})
	for i := range 5 {
		if seq, err := m.Append(context.Background(), ClassAlert, []byte{byte(i)}); err != nil || seq != uint64(i+1) {
			t.Fatalf("Append: %d, %v", seq, err)
		}
	}
	got, err := m.Next(ClassAlert, 0, 10)
	if err != nil || len(got) != 3 || got[0].Seq != 3 || got[0].Payload[0] != 2 {
		t.Errorf("Next: %+v, %v", got, err)
	}
	if _, err := m.Append(context.Background(), ClassStatus, make([]byte, 11)); !errors.Is(err, ErrOutboxFull) {
		t.Errorf("a record beyond the bound: %v", err)
	}
	if s := m.Stats()[ClassAlert]; s.Dropped != 2 || s.Pending != 3 || s.Bytes != 3 || s.LastSeq != 5 {
		t.Errorf("stats %+v", s)
	}
}

// The outbox against a list that is too simple to be wrong.
func TestOutboxAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const bound = 8
		m := NewMemory(MemoryConfig{Records: [NumClasses]int{ClassAlert: bound}})
		var model []uint64
		var last, dropped, acked uint64
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				last++
				seq, err := m.Append(context.Background(), ClassAlert, fmt.Appendf(nil, "%d", last))
				if err != nil || seq != last {
					t.Fatalf("Append: %d, %v, want %d", seq, err, last)
				}
				if model = append(model, last); len(model) > bound {
					model, dropped = model[1:], dropped+1
				}
			},
			"ack": func(t *rapid.T) {
				seq := rapid.Uint64Range(0, last+2).Draw(t, "seq")
				if err := m.Ack(ClassAlert, seq); err != nil {
					t.Fatal(err)
				}
				for i, s := range model {
					if s == seq {
						model, acked = append(model[:i:i], model[i+1:]...), acked+1
						break
					}
				}
			},
			"": func(t *rapid.T) {
				after := rapid.Uint64Range(0, last+1).Draw(t, "after")
				n := rapid.IntRange(0, bound+1).Draw(t, "n")
				var want []uint64
				for _, s := range model {
					if s > after && len(want) < n {
						want = append(want, s)
					}
				}
				entries, err := m.Next(ClassAlert, after, n)
				var got []uint64
				for _, e := range entries {
					got = append(got, e.Seq)
					if string(e.Payload) != fmt.Sprint(e.Seq) {
						t.Fatalf("record %d has the payload %q", e.Seq, e.Payload)
					}
				}
				if s := m.Stats()[ClassAlert]; err != nil || fmt.Sprint(got) != fmt.Sprint(want) || s.Pending != len(model) || s.Dropped != dropped || s.Acked != acked {
					t.Fatalf("Next(%d, %d) = %v, %v, want %v; stats %+v", after, n, got, err, want, s)
				}
			},
		})
	})
}

func FuzzEventsNeverPanic(f *testing.F) {
	f.Add([]byte("id: 1\nevent: delta\ndata: a\ndata: b\n\n: beat\n\n"))
	f.Add([]byte("data\n\n\nevent:x\r\n\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		n := 0
		err := readEvents(bytes.NewReader(raw), func() {}, func(e sse) error {
			if n++; len(e.data) > maxEvent || len(e.id) > 64 {
				t.Errorf("event of %d bytes, id of %d", len(e.data), len(e.id))
			}
			return nil
		})
		if err == nil {
			t.Error("the end of a stream is an error")
		}
	})
}

func TestEventsAreReadAsTheStandardHasThem(t *testing.T) {
	var got []string
	err := readEvents(bytes.NewReader([]byte(": beat\n\nid: 7\nevent: delta\ndata: a\ndata: b\n\nevent: changed\ndata:{}\n\nevent: lost")), func() {}, func(e sse) error {
		got = append(got, fmt.Sprintf("%s %s %q", e.id, e.name, e.data))
		return nil
	})
	if want := `[7 delta "a\nb"  changed "{}"]`; fmt.Sprint(got) != want || err == nil {
		t.Errorf("got %v, %v, want %s and an error at the end", got, err, want)
	}
}
