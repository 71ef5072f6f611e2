package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// drivers are the implementations that must conform.
var drivers = map[string]func(t testing.TB, path string) Store{
	"bolt": func(t testing.TB, path string) Store {
		s, err := OpenBolt(BoltConfig{Path: path, Recent: 8})
		if err != nil {
			t.Fatal(err)
		}
		return s
	},
}

func conform(t *testing.T, test func(t *testing.T, open func() Store)) {
	for name, open := range drivers {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			test(t, func() Store {
				s := open(t, path)
				t.Cleanup(func() { s.Close() })
				return s
			})
		})
	}
}

func put(t testing.TB, s Store, kv ...string) uint64 {
	t.Helper()
	var ops []Op
	for i := 0; i < len(kv); i += 2 {
		ops = append(ops, Put(kv[i], []byte(kv[i+1])))
	}
	rev, err := s.Txn(nil, ops)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func TestTxnIsAtomicAndCompares(t *testing.T) {
	conform(t, func(t *testing.T, open func() Store) {
		s := open()
		r1 := put(t, s, "a/1", "x", "a/2", "y", "b/1", "z")
		rev, got, err := s.Snapshot("a/")
		if err != nil || rev != r1 || len(got) != 2 || string(got[1].Value) != "y" || got[0].Modified != r1 {
			t.Fatalf("snapshot at %d (want %d): %+v, %v", rev, r1, got, err)
		}
		var conflict *ConflictError
		_, err = s.Txn([]Compare{{"a/1", r1}, {"a/2", 0}}, []Op{Put("a/1", []byte("lost")), Delete("b/1")})
		if !errors.As(err, &conflict) || conflict.Key != "a/2" || conflict.Have != r1 {
			t.Fatalf("got %v, want a conflict at a/2", err)
		}
		if e, ok, _ := s.Get("b/1"); !ok || string(e.Value) != "z" || s.Rev() != r1 {
			t.Fatalf("a refused transaction left a trace: %+v %v at %d", e, ok, s.Rev())
		}
		r2, err := s.Txn([]Compare{{"a/1", r1}, {"new", 0}}, []Op{Put("a/1", []byte("x2")), Delete("b/1"), Put("new", nil)})
		if err != nil || r2 != r1+1 {
			t.Fatalf("revision %d, %v; want %d", r2, err, r1+1)
		}
		if e, ok, _ := s.Get("a/1"); !ok || e.Created != r1 || e.Modified != r2 {
			t.Errorf("entry %+v, want created %d modified %d", e, r1, r2)
		}
		if _, ok, _ := s.Get("b/1"); ok {
			t.Error("a deleted key is still there")
		}
		if rev, err := s.Txn([]Compare{{"a/1", r2}}, nil); err != nil || rev != r2 {
			t.Errorf("a transaction without ops: %d, %v", rev, err)
		}
	})
}

func TestWatchSeesEveryTransactionInOrder(t *testing.T) {
	conform(t, func(t *testing.T, open func() Store) {
		s := open()
		from := put(t, s, "k", "0")
		w, err := s.Watch(from)
		if err != nil {
			t.Fatal(err)
		}
		const n = 50 // far more than the 8 that are kept in memory
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for range n {
					put(t, s, "k", "v", "l", "w")
				}
			})
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for i := range uint64(2 * n) {
			b, err := w.Next(ctx)
			if err != nil || b.Rev != from+1+i || len(b.Ops) != 2 {
				t.Fatalf("got revision %d with %d ops, %v; want %d", b.Rev, len(b.Ops), err, from+1+i)
			}
		}
		wg.Wait()
		stop, cancelNow := context.WithCancel(t.Context())
		cancelNow()
		if _, err := w.Next(stop); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
	})
}

func TestCompactionEndsOldWatchersOnly(t *testing.T) {
	conform(t, func(t *testing.T, open func() Store) {
		s := open()
		for i := range 20 {
			put(t, s, fmt.Sprint("k", i), "v")
		}
		old, _ := s.Watch(3)
		fresh, _ := s.Watch(15)
		if err := s.Compact(10); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Watch(9); !errors.Is(err, ErrCompacted) {
			t.Errorf("watch from 9: %v, want ErrCompacted", err)
		}
		if _, err := s.Watch(10); err != nil {
			t.Errorf("watch from 10: %v", err)
		}
		if _, err := s.Watch(21); err == nil {
			t.Error("a watch from the future was accepted")
		}
		if _, err := old.Next(t.Context()); !errors.Is(err, ErrCompacted) {
			t.Errorf("old watcher: %v, want ErrCompacted", err)
		}
		if b, err := fresh.Next(t.Context()); err != nil || b.Rev != 16 {
			t.Errorf("fresh watcher: %d, %v", b.Rev, err)
		}
		if _, all, _ := s.Snapshot(""); len(all) != 20 {
			t.Errorf("%d entries after compaction, want 20", len(all))
		}
		s.Close()
		if _, err := fresh.Next(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v, want ErrClosed", err)
		}
		s = open()
		if _, err := s.Watch(9); !errors.Is(err, ErrCompacted) {
			t.Errorf("after reopening, watch from 9: %v, want ErrCompacted", err)
		}
	})
}

func TestReopenKeepsEntriesRevisionAndLog(t *testing.T) {
	conform(t, func(t *testing.T, open func() Store) {
		s := open()
		for i := range 12 {
			put(t, s, "k", fmt.Sprint(i))
		}
		s.Close()
		s = open()
		if e, ok, err := s.Get("k"); !ok || err != nil || string(e.Value) != "11" || s.Rev() != 12 {
			t.Fatalf("entry %q %v %v at %d", e.Value, ok, err, s.Rev())
		}
		w, err := s.Watch(4)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := w.Next(t.Context()); err != nil || b.Rev != 5 || string(b.Ops[0].Value) != "4" {
			t.Errorf("log after reopening: %+v, %v", b, err)
		}
	})
}

// A process that is killed loses no transaction whose Txn returned.
func TestKillLosesNothingAcknowledged(t *testing.T) {
	if path := os.Getenv("YUMEN_STORE_CHILD"); path != "" {
		s, err := OpenBolt(BoltConfig{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ {
			fmt.Println("acked", put(t, s, fmt.Sprint("k", i), "v"))
		}
	}
	path := filepath.Join(t.TempDir(), "store.db")
	cmd := exec.Command(os.Args[0], "-test.run=^TestKillLosesNothingAcknowledged$")
	cmd.Env = append(os.Environ(), "YUMEN_STORE_CHILD="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var acked uint64
	buf := make([]byte, 4096)
	var text strings.Builder
	for acked < 40 {
		n, err := out.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(buf[:n])
		for line := range strings.Lines(text.String()) {
			if strings.HasSuffix(line, "\n") {
				fmt.Sscanf(line, "acked %d", &acked)
			}
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	s, err := OpenBolt(BoltConfig{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, all, err := s.Snapshot("k")
	if err != nil || s.Rev() < acked || uint64(len(all)) != s.Rev() {
		t.Errorf("revision %d with %d entries after %d acknowledgements, %v", s.Rev(), len(all), acked, err)
	}
}

func TestOpenTwiceNamesTheRemedy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := drivers["bolt"](t, path)
	defer s.Close()
	if _, err := OpenBolt(BoltConfig{Path: path}); err == nil || !strings.Contains(err.Error(), "stop that one") {
		t.Errorf("got %v", err)
	}
}

func TestLogRecordRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ops := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Op {
			return Op{Key: rapid.StringN(1, 20, 40).Draw(t, "key"), Value: []byte(rapid.String().Draw(t, "value")), Delete: rapid.Bool().Draw(t, "delete")}
		}), 0, 5).Draw(t, "ops")
		got, err := decodeOps(encodeOps(ops))
		if err != nil || len(got) != len(ops) {
			t.Fatalf("%d ops, %v; want %d", len(got), err, len(ops))
		}
		for i := range ops {
			if got[i].Key != ops[i].Key || string(got[i].Value) != string(ops[i].Value) || got[i].Delete != ops[i].Delete {
				t.Fatalf("op %d: %+v, want %+v", i, got[i], ops[i])
			}
		}
	})
}

func FuzzLogRecord(f *testing.F) {
	f.Add(encodeOps([]Op{Put("k", []byte("v")), Delete("l")}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if ops, err := decodeOps(raw); err == nil && len(ops) > len(raw) {
			t.Fatal("more ops than bytes")
		}
	})
}

func BenchmarkTxnToWatcher(b *testing.B) {
	s := drivers["bolt"](b, filepath.Join(b.TempDir(), "store.db"))
	defer s.Close()
	w, _ := s.Watch(0)
	for b.Loop() {
		put(b, s, "k", "v")
		if _, err := w.Next(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
