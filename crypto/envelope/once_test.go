package envelope

import (
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

var (
	digestA = [32]byte{1}
	digestB = [32]byte{2}
)

func reply(s string) func() []byte { return func() []byte { return []byte(s) } }

func never(t testing.TB) func() []byte {
	return func() []byte {
		t.Error("a second effect")
		return nil
	}
}

func TestGCR002_M22_RepeatHasOneEffect(t *testing.T) {
	o := NewOnce(OnceConfig{})
	got, repeated, err := o.Do("GW000000001", "id", digestA, reply("first"))
	if string(got) != "first" || repeated || err != nil {
		t.Fatalf("first: got %q, %v, %v", got, repeated, err)
	}
	for range 3 {
		got, repeated, err = o.Do("GW000000001", "id", digestA, never(t))
		if string(got) != "first" || !repeated || err != nil {
			t.Errorf("repeat: got %q, %v, %v", got, repeated, err)
		}
	}
	_, _, err = o.Do("GW000000001", "id", digestB, never(t))
	wantRejected(t, err, reason.MessageConflict)
	// Ids are the sender's own.
	got, repeated, err = o.Do("GW000000002", "id", digestB, reply("other"))
	if string(got) != "other" || repeated || err != nil {
		t.Errorf("another sender: got %q, %v, %v", got, repeated, err)
	}
	// An empty reply is a reply.
	_, _, _ = o.Do("GW000000001", "empty", digestA, reply(""))
	if _, repeated, err = o.Do("GW000000001", "empty", digestA, never(t)); !repeated || err != nil {
		t.Errorf("empty reply: got %v, %v", repeated, err)
	}
	for _, bad := range []string{"", "a b", strings.Repeat("x", 65)} {
		_, _, err = o.Do("GW000000001", bad, digestA, never(t))
		wantRejected(t, err, reason.MessageInvalid)
		_, _, err = o.Do(bad, "id", digestA, never(t))
		wantRejected(t, err, reason.MessageInvalid)
	}
	if s := o.Stats(); s.Repeats != 4 || s.Conflicts != 1 || s.Entries != 3 || s.Bytes != len("first")+len("other") {
		t.Errorf("stats: got %+v", s)
	}
}

func TestGCR002_M22_ConcurrentRepeatsWaitForTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := NewOnce(OnceConfig{})
		var calls, answers atomic.Int32
		release := make(chan struct{})
		for range 20 {
			go func() {
				got, _, err := o.Do("s", "id", digestA, func() []byte {
					calls.Add(1)
					<-release
					return []byte("one")
				})
				if string(got) != "one" || err != nil {
					t.Errorf("got %q, %v", got, err)
				}
				answers.Add(1)
			}()
		}
		synctest.Wait()
		if calls.Load() != 1 || answers.Load() != 0 {
			t.Errorf("while the first runs: %d calls, %d answers", calls.Load(), answers.Load())
		}
		// A conflict is told at once, it does not wait.
		_, _, err := o.Do("s", "id", digestB, never(t))
		wantRejected(t, err, reason.MessageConflict)
		// Nor does a first call that takes long lose its entry.
		time.Sleep(time.Hour)
		if _, _, err := o.Do("s", "another", digestA, reply("")); err != nil {
			t.Error(err)
		}
		if o.Stats().Entries != 2 {
			t.Errorf("entries: got %d, want 2", o.Stats().Entries)
		}
		close(release)
		synctest.Wait()
		if calls.Load() != 1 || answers.Load() != 20 {
			t.Errorf("in the end: %d calls, %d answers", calls.Load(), answers.Load())
		}
	})
}

func TestOnceForgetsAfterTwoWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := NewOnce(OnceConfig{Window: time.Minute})
		_, _, _ = o.Do("s", "id", digestA, reply("1"))
		time.Sleep(2 * time.Minute)
		if got, repeated, _ := o.Do("s", "id", digestA, reply("2")); string(got) != "1" || !repeated {
			t.Errorf("at two windows: got %q, %v", got, repeated)
		}
		time.Sleep(time.Nanosecond)
		if got, repeated, _ := o.Do("s", "id", digestA, reply("3")); string(got) != "3" || repeated {
			t.Errorf("after two windows: got %q, %v", got, repeated)
		}
		if s := o.Stats(); s.Entries != 1 || s.Bytes != 1 {
			t.Errorf("stats: got %+v", s)
		}
	})
}

func TestOnceIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := NewOnce(OnceConfig{MaxEntries: 8, MaxPerSender: 6, MaxBytes: 100})
		for i := range 6 {
			if _, _, err := o.Do("flood", fmt.Sprint(i), digestA, reply(strings.Repeat("x", 30))); err != nil {
				t.Fatal(err)
			}
		}
		_, _, err := o.Do("flood", "7", digestA, never(t))
		wantRejected(t, err, reason.Overload)
		// Another sender still has room, up to the bound of all.
		for i := range 2 {
			if _, _, err := o.Do("other", fmt.Sprint(i), digestA, reply("")); err != nil {
				t.Errorf("another sender: %v", err)
			}
		}
		_, _, err = o.Do("third", "1", digestA, never(t))
		wantRejected(t, err, reason.Overload)

		// The oldest replies are gone, their ids are not.
		_, repeated, err := o.Do("flood", "0", digestA, never(t))
		wantRejected(t, err, reason.Overload)
		if !repeated {
			t.Error("the repeat of a forgotten reply is not called one")
		}
		if got, _, err := o.Do("flood", "5", digestA, never(t)); len(got) != 30 || err != nil {
			t.Errorf("newest reply: got %q, %v", got, err)
		}
		if s := o.Stats(); s.Entries != 8 || s.Bytes != 90 || s.Forgotten != 3 || s.Refused != 2 {
			t.Errorf("stats: got %+v", s)
		}
		// A reply beyond the bound goes to its caller and no further.
		time.Sleep(time.Hour)
		if got, _, err := o.Do("s", "big", digestA, reply(strings.Repeat("x", 101))); len(got) != 101 || err != nil {
			t.Errorf("big reply: got %d bytes, %v", len(got), err)
		}
		_, _, err = o.Do("s", "big", digestA, never(t))
		wantRejected(t, err, reason.Overload)
		if s := o.Stats(); s.Entries != 1 || s.Bytes != 0 {
			t.Errorf("stats: got %+v", s)
		}
	})
}

func TestOncePanicDoesNotWedge(t *testing.T) {
	for name, end := range map[string]func(){
		"panic":  func() { panic("boom") },
		"Goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := NewOnce(OnceConfig{})
				release := make(chan struct{})
				var passedOn atomic.Bool
				go func() {
					defer func() { passedOn.Store(recover() != nil) }()
					_, _, _ = o.Do("s", "id", digestA, func() []byte {
						<-release
						end()
						return nil
					})
				}()
				synctest.Wait()
				waited := make(chan error, 1)
				go func() {
					_, _, err := o.Do("s", "id", digestA, never(t))
					waited <- err
				}()
				synctest.Wait()
				close(release)
				wantRejected(t, <-waited, reason.InternalError)
				synctest.Wait()
				if passedOn.Load() != (name == "panic") {
					t.Errorf("panic passed on to the caller: %v", passedOn.Load())
				}
				if got, repeated, err := o.Do("s", "id", digestA, reply("again")); string(got) != "again" || repeated || err != nil {
					t.Errorf("afterwards: got %q, %v, %v", got, repeated, err)
				}
				if s := o.Stats(); s.Entries != 1 {
					t.Errorf("stats: got %+v", s)
				}
			})
		})
	}
}
