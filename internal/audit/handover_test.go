package audit

import (
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

type collected struct {
	mu  sync.Mutex
	all []Record
}

func (c *collected) Write(r *Record) {
	c.mu.Lock()
	c.all = append(c.all, *r)
	c.mu.Unlock()
}

// What was written before stays in the file, what comes after goes to the other
// process, and nothing is missing or there twice.
func TestRecordsAreHandedOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	a, err := OpenFile(FileConfig{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	record := func(n int) *Record {
		return &Record{Time: time.Unix(1_800_000_000, int64(n)).UTC(), Kind: End, RequestID: string(rune('a' + n)), Remote: "192.0.2.1:1", Detail: "玉 \"quoted\"\n", Duration: 5, BytesIn: 7}
	}
	for n := range 10 {
		a.Write(record(n))
	}
	r, w := io.Pipe()
	var c collected
	done := make(chan error, 1)
	go func() {
		n, err := Adopt(r, &c, nil)
		if n != 10 {
			t.Errorf("%d records came, want 10", n)
		}
		done <- err
	}()
	if err := a.HandOver(w); err != nil {
		t.Fatal(err)
	}
	b, err := OpenFile(FileConfig{Path: path}) // the other process has it
	if err != nil {
		t.Fatal(err)
	}
	for n := 10; n < 20; n++ {
		a.Write(record(n))
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for i := range c.all {
		if got, want := c.all[i], *record(10 + i); got != want && strings.TrimSpace(got.Detail) != strings.TrimSpace(want.Detail) {
			t.Errorf("record %d: %+v, want %+v", i, got, want)
		}
		b.Write(&c.all[i])
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if s := a.Stats(); s.Written != 20 || s.Dropped != 0 {
		t.Errorf("%+v", s)
	}
	if s := b.Stats(); s.Written != 10 {
		t.Errorf("%+v", s)
	}
	if err := a.HandOver(w); err == nil {
		t.Error("a closed store was handed over")
	}
}
