package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/wire"
)

func fixedKey() ([]byte, error) { return []byte("0123456789abcdef"), nil }

// The outbox on disk against a list that is too simple to be wrong, over
// restarts.
func TestDurableOutboxAgainstAModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			r.Fatal(err)
		}
		open := func() *Durable {
			d := NewDurable(DurableConfig{Dir: dir, Key: fixedKey, Reserve: -1})
			if err := d.Open(); err != nil {
				r.Fatal(err)
			}
			return d
		}
		d := open()
		defer func() { d.Close() }()
		var model []uint64
		var last, acked uint64
		r.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				last++
				seq, err := d.Append(context.Background(), ClassAlert, fmt.Appendf(nil, "%d", last))
				if err != nil || seq != last {
					t.Fatalf("Append: %d, %v, want %d", seq, err, last)
				}
				model = append(model, last)
			},
			"ack": func(t *rapid.T) {
				seq := rapid.Uint64Range(0, last+2).Draw(t, "seq")
				if err := d.Ack(ClassAlert, seq); err != nil {
					t.Fatal(err)
				}
				for i, s := range model {
					if s == seq {
						model, acked = append(model[:i:i], model[i+1:]...), acked+1
						break
					}
				}
			},
			"restart": func(t *rapid.T) {
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				d, acked = open(), 0
			},
			"": func(t *rapid.T) {
				after := rapid.Uint64Range(0, last+1).Draw(t, "after")
				n := rapid.IntRange(0, 9).Draw(t, "n")
				var want []uint64
				for _, s := range model {
					if s > after && len(want) < n {
						want = append(want, s)
					}
				}
				entries, err := d.Next(ClassAlert, after, n)
				var got []uint64
				for _, e := range entries {
					got = append(got, e.Seq)
					if string(e.Payload) != fmt.Sprint(e.Seq) || e.Class != ClassAlert || e.At.IsZero() {
						t.Fatalf("record %+v", e)
					}
				}
				if s := d.Stats()[ClassAlert]; err != nil || fmt.Sprint(got) != fmt.Sprint(want) || s.Pending != len(model) || s.Acked != acked || s.LastSeq != last {
					t.Fatalf("Next(%d, %d) = %v, %v, want %v; stats %+v", after, n, got, err, want, s)
				}
			},
		})
	})
}

func TestDurableTakesReportsBeforeItIsOpen(t *testing.T) {
	d := NewDurable(DurableConfig{Dir: t.TempDir(), Key: fixedKey, Reserve: -1})
	if _, err := d.Append(context.Background(), ClassStatus, []byte("early")); err != nil {
		t.Fatal(err)
	}
	if err := d.Open(); err != nil {
		t.Fatal(err)
	}
	got, err := d.Next(ClassStatus, 0, 9)
	if err != nil || len(got) != 1 || string(got[0].Payload) != "early" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := d.Append(context.Background(), ClassAlert, make([]byte, 2<<20)); !errors.Is(err, ErrOutboxFull) {
		t.Errorf("a record beyond the bound: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Append(context.Background(), ClassAlert, nil); !errors.Is(err, ErrOutboxClosed) {
		t.Errorf("append after close: %v", err)
	}
}

// What can not be opened is no reason to lose the link.
func TestDurableStaysInMemoryWhenItCannotOpen(t *testing.T) {
	d := NewDurable(DurableConfig{Dir: t.TempDir(), Key: func() ([]byte, error) { return nil, os.ErrPermission }})
	if err := d.Open(); !errors.Is(err, os.ErrPermission) {
		t.Fatalf("open without a key: %v", err)
	}
	if seq, err := d.Append(context.Background(), ClassAlert, []byte("x")); err != nil || seq != 1 {
		t.Errorf("append: %d, %v", seq, err)
	}
	if s := d.Stats()[ClassAlert]; s.Pending != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestDurableDropsByBytesAndCounts(t *testing.T) {
	cfg := DurableConfig{Dir: t.TempDir(), Key: fixedKey, Reserve: -1}
	cfg.Caps[ClassAlert] = 64 << 10
	d := NewDurable(cfg)
	if err := d.Open(); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const n = 1000
	for i := range n {
		if _, err := d.Append(context.Background(), ClassAlert, fmt.Appendf(nil, "%0500d", i)); err != nil {
			t.Fatal(err)
		}
	}
	here, after := 0, uint64(0)
	for {
		got, err := d.Next(ClassAlert, after, 64)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			break
		}
		here, after = here+len(got), got[len(got)-1].Seq
	}
	if s := d.Stats()[ClassAlert]; s.Dropped == 0 || here+int(s.Dropped) != n || s.Bytes > cfg.Caps[ClassAlert]*9/8 {
		t.Errorf("%d here, stats %+v, want %d in all", here, s, n)
	}
}

// TestGCR002_M49_ReportsSurviveTheProcess: what was buffered during an outage
// is sent by the next process, under its own time and once.
func TestGCR002_M49_ReportsSurviveTheProcess(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		cfg.Outbox = nil // the default: on disk
		g := newGateway(t, cfg)
		c.setDead(true)
		stop := run(t, g.Run)
		g.Raise(alert.Alert{Code: alert.AppDown, Detail: "while nobody listened"})
		time.Sleep(10 * time.Minute)
		stop()
		synctest.Wait()
		if files, _ := filepath.Glob(filepath.Join(cfg.StateDir, "outbox", "alert", "*.seg")); len(files) == 0 {
			t.Fatal("nothing is on disk")
		}
		down := time.Now()
		c.setDead(false)
		g = newGateway(t, cfg)
		stop = run(t, g.Run)
		time.Sleep(20 * time.Second)
		t10, old := c.of("T10"), 0
		ids := map[string]int{}
		for _, r := range t10 {
			ids[r.id]++
			if string(r.ext[wire.ExtState]) == `"run"` && !r.at.Before(down) {
				old++
			}
		}
		if old < 10 {
			t.Errorf("%d statuses of the outage arrived, want 10 or more; %d in all", old, len(t10))
		}
		for id, n := range ids {
			if n != 1 {
				t.Errorf("message %s arrived %d times", id, n)
			}
		}
		if n := len(c.of("T11")); n == 0 {
			t.Error("the alert of the process before was lost")
		}
		stop()
		if files, _ := filepath.Glob(filepath.Join(cfg.StateDir, "outbox", "*", "cursor")); len(files) == 0 {
			t.Error("no cursor was saved")
		}
	})
}

// A record is either among those that waited when a session began, or among
// those that come: never one that has its number and cannot be read yet.
func TestLastSeqIsOfARecordThatCanBeRead(t *testing.T) {
	d := NewDurable(DurableConfig{Dir: t.TempDir(), Key: fixedKey, Reserve: -1})
	if err := d.Open(); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 200 {
				if _, err := d.Append(t.Context(), ClassAlert, []byte("alert")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 200 {
		last := d.Stats()[ClassAlert].LastSeq
		if last == 0 {
			continue
		}
		got, err := d.Next(ClassAlert, last-1, 1)
		if err != nil || len(got) != 1 || got[0].Seq != last {
			t.Fatalf("record %d is the newest, and reading it gives %v, %v", last, got, err)
		}
	}
	all.Wait()
}
