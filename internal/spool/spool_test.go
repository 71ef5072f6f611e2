package spool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/yumen-zt/yumen/crypto/sm4gcm"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("YUMEN_SPOOL_CHILD"); dir != "" {
		child(dir)
	}
	goleak.VerifyTestMain(m)
}

var testKey = []byte("0123456789abcdef0123456789abcdef")

// config returns a small spool on d.
func config(d *testDisk) Config {
	return Config{Dir: "/s", Key: testKey, Seal: sm4gcm.New, Reserve: -1, SaveEvery: time.Millisecond, Window: time.Millisecond, fs: d}
}

func mustOpen(t testing.TB, cfg Config) *Spool {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustClose(t testing.TB, s *Spool) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func mustAppend(t testing.TB, s *Spool, c Class, payload string) uint64 {
	t.Helper()
	seq, err := s.Append(context.Background(), c, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

// all returns what waits in a class.
func all(t testing.TB, s *Spool, c Class) (out []Record) {
	t.Helper()
	after := uint64(0)
	for {
		got, err := s.Next(c, after, 100)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			return out
		}
		out = append(out, got...)
		after = got[len(got)-1].Seq
	}
}

func waitFor(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestAppendNextAckAndReopen(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Key: testKey, Seal: sm4gcm.New, Reserve: 1 << 20}
	s := mustOpen(t, cfg)
	for i := range 10 {
		if seq := mustAppend(t, s, Alert, fmt.Sprint(i)); seq != uint64(i+1) {
			t.Fatalf("number %d, want %d", seq, i+1)
		}
	}
	if err := s.Ack(Alert, 1, 2, 5, 99); err != nil {
		t.Fatal(err)
	}
	check := func(s *Spool, want string) {
		t.Helper()
		got := ""
		for _, r := range all(t, s, Alert) {
			if string(r.Payload) != fmt.Sprint(r.Seq-1) {
				t.Errorf("record %d has the payload %q", r.Seq, r.Payload)
			}
			got += fmt.Sprint(r.Seq, " ")
		}
		if st := s.Stats().Class[Alert]; got != want || st.Pending != len(all(t, s, Alert)) {
			t.Errorf("got %s, %d pending, want %s", got, st.Pending, want)
		}
	}
	check(s, "3 4 6 7 8 9 10 ")
	if st := s.Stats().Class[Alert]; st.Acked != 3 || st.Appended != 10 || st.LastSeq != 10 || time.Since(st.Oldest) > time.Minute {
		t.Errorf("stats %+v", st)
	}
	mustClose(t, s)
	if _, err := s.Append(context.Background(), Alert, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	s = mustOpen(t, cfg)
	check(s, "3 4 6 7 8 9 10 ")
	if seq := mustAppend(t, s, Alert, "10"); seq != 11 {
		t.Errorf("number %d after opening again, want 11", seq)
	}
	names, _ := filepath.Glob(filepath.Join(cfg.Dir, "alert", "*.seg"))
	if len(names) != 2 {
		t.Errorf("segments %v: an opening must not append to an earlier one's", names)
	}
	p, err := s.Prove(Alert, 1, 11)
	if err != nil || !p.Whole() || p.Present+p.Settled != 11 || len(p.Gaps) != 0 {
		t.Errorf("proof %+v, %v", p, err)
	}
	for seq := range uint64(12) {
		s.Ack(Alert, seq)
	}
	mustClose(t, s)
	s = mustOpen(t, cfg)
	defer mustClose(t, s)
	check(s, "")
	if seq := mustAppend(t, s, Alert, "x"); seq != 12 {
		t.Errorf("number %d, want 12", seq)
	}
}

func TestR19_SecondProcessIsRefused(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Key: testKey, Seal: sm4gcm.New, Reserve: -1}
	s := mustOpen(t, cfg)
	if second, err := Open(cfg); err == nil {
		second.Close()
		t.Fatal("the folder was opened twice")
	}
	mustClose(t, s)
	mustClose(t, mustOpen(t, cfg))
}

// The spool against a list that is too simple to be wrong, over restarts.
func TestSpoolAgainstAModel(t *testing.T) {
	type model struct {
		waiting []uint64
		last    uint64
		acked   uint64
	}
	rapid.Check(t, func(t *rapid.T) {
		d := newDisk(1)
		cfg := config(d)
		cfg.Caps = [NumClasses]int64{1 << 20, 1 << 20, 1 << 20, 1 << 20}
		cfg.SegmentBytes = 4 << 10
		s, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { s.Close() }()
		var m [NumClasses]model
		class := rapid.Map(rapid.IntRange(0, int(NumClasses)-1), func(i int) Class { return Class(i) })
		payload := func(c Class, seq uint64) string { return fmt.Sprintf("%s %0*d", c, 1+int(seq%700), seq) }
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				c := class.Draw(t, "class")
				for range rapid.IntRange(1, 20).Draw(t, "n") {
					m[c].last++
					seq, err := s.Append(context.Background(), c, []byte(payload(c, m[c].last)))
					if err != nil || seq != m[c].last {
						t.Fatalf("Append: %d, %v, want %d", seq, err, m[c].last)
					}
					m[c].waiting = append(m[c].waiting, seq)
				}
			},
			"ack": func(t *rapid.T) {
				c := class.Draw(t, "class")
				settleAudit(s, c, m[c].last)
				for _, seq := range rapid.SliceOfN(rapid.Uint64Range(0, m[c].last+2), 1, 8).Draw(t, "seqs") {
					if err := s.Ack(c, seq); err != nil {
						t.Fatal(err)
					}
					for i, w := range m[c].waiting {
						if w == seq {
							m[c].waiting = append(m[c].waiting[:i:i], m[c].waiting[i+1:]...)
							m[c].acked++
							break
						}
					}
				}
			},
			"reopen": func(t *rapid.T) {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if s, err = Open(cfg); err != nil {
					t.Fatal(err)
				}
				for c := range m {
					m[c].acked = 0
				}
			},
			"": func(t *rapid.T) {
				c := class.Draw(t, "class")
				settleAudit(s, c, m[c].last)
				after := rapid.Uint64Range(0, m[c].last+1).Draw(t, "after")
				n := rapid.IntRange(0, 30).Draw(t, "n")
				var want []uint64
				for _, w := range m[c].waiting {
					if w > after && len(want) < n {
						want = append(want, w)
					}
				}
				records, err := s.Next(c, after, n)
				var got []uint64
				for _, r := range records {
					got = append(got, r.Seq)
					if string(r.Payload) != payload(c, r.Seq) {
						t.Fatalf("record %d has the payload %q", r.Seq, r.Payload)
					}
				}
				st := s.Stats().Class[c]
				if err != nil || fmt.Sprint(got) != fmt.Sprint(want) || st.Pending != len(m[c].waiting) || st.Dropped != 0 || st.Acked != m[c].acked || st.LastSeq != m[c].last {
					t.Fatalf("Next(%s, %d, %d) = %v, %v, want %v; stats %+v", c, after, n, got, err, want, st)
				}
				p, err := s.Prove(c, 1, m[c].last)
				if err != nil || !p.Whole() || len(p.Gaps) > 0 || p.Present+p.Settled != m[c].last {
					t.Fatalf("proof %+v, %v", p, err)
				}
			},
		})
	})
}

// settleAudit waits until the last record of a lazy class is synced.
func settleAudit(s *Spool, c Class, last uint64) {
	for c.lazy() {
		s.logs[c].mu.Lock()
		ok := s.logs[c].synced >= last
		s.logs[c].mu.Unlock()
		if ok {
			return
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func TestGroupCommitSyncsOnceForMany(t *testing.T) {
	d := newDisk(1)
	d.failSync = func(string) error { time.Sleep(100 * time.Microsecond); return nil } // as long as a fast disk takes: that is when others come
	s := mustOpen(t, config(d))
	defer mustClose(t, s)
	var wg sync.WaitGroup
	const writers, each = 64, 50
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if _, err := s.Append(context.Background(), Alert, fmt.Appendf(nil, "%d %d", w, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	st := s.Stats().Class[Alert]
	if got := len(all(t, s, Alert)); got != writers*each || st.Appended != writers*each {
		t.Errorf("%d records, %d appended, want %d", got, st.Appended, writers*each)
	}
	if st.Syncs*4 > writers*each {
		t.Errorf("%d syncs for %d records", st.Syncs, writers*each)
	}
}
