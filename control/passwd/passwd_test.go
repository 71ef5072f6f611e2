package passwd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestGCR002_M150_PasswordsAreHashedAndChecked(t *testing.T) {
	ctx := t.Context()
	sm, err := New(PBKDF2SM3, 0)
	if err != nil {
		t.Fatal(err)
	}
	argon, err := New("", 0)
	if err != nil {
		t.Fatal(err)
	}
	for kind, h := range map[string]*Hasher{Argon2id: argon, PBKDF2SM3: sm} {
		hash, err := h.Hash(ctx, "correct horse 1")
		if err != nil || !strings.HasPrefix(hash, "$"+kind+"$") || strings.Contains(hash, "horse") {
			t.Fatalf("%s: %q, %v", kind, hash, err)
		}
		// Each hasher reads the other's hashes: the setting may change.
		for _, reader := range []*Hasher{argon, sm} {
			if err := reader.Check(ctx, hash, "correct horse 1"); err != nil {
				t.Errorf("%s: the right password: %v", kind, err)
			}
			if err := reader.Check(ctx, hash, "correct horse 2"); !errors.Is(err, ErrWrong) {
				t.Errorf("%s: a wrong password: %v", kind, err)
			}
		}
		if again, _ := h.Hash(ctx, "correct horse 1"); again == hash {
			t.Errorf("%s: two hashes of one password are equal: no salt", kind)
		}
	}
	if err := argon.Check(ctx, "", strings.Repeat("\x00", 32)); !errors.Is(err, ErrWrong) {
		t.Errorf("nobody's password: %v", err)
	}
	if err := argon.Check(ctx, "$argon2id$v=19$m=1,t=1,p=1$AAAA$AAAA", "x"); err == nil || errors.Is(err, ErrWrong) {
		t.Errorf("unknown parameters: %v", err)
	}
}

func TestGCR002_M168_WeakPasswordsAreRefused(t *testing.T) {
	for password, fit := range map[string]bool{
		"short1": false, "onlyletters": false, "letters and 1": true, "sixteencharacter": true, "通行口令一二三四五六a": true, strings.Repeat("a1", 251): false,
	} {
		if got := Fit(password) == nil; got != fit {
			t.Errorf("%.20q: fit %v, want %v", password, got, fit)
		}
	}
}

func TestHasherIsBounded(t *testing.T) {
	h, _ := New(Argon2id, 1)
	h.slots <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Check(ctx, "", "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want to wait for a slot until the context ends", err)
	}
}

func TestGCR002_M168_GuessingLocksUserAndAddress(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	l := NewLimiter(LimiterConfig{Attempts: 3, Window: time.Minute, Duration: 10 * time.Minute, Now: func() time.Time { return now }})
	var passed atomic.Int32
	var wg sync.WaitGroup
	for range 20 { // at the same time
		wg.Go(func() {
			if l.Begin("user:a") {
				passed.Add(1)
			}
		})
	}
	wg.Wait()
	if passed.Load() != 3 {
		t.Fatalf("%d attempts passed, want 3", passed.Load())
	}
	if _, locked := l.Locked("user:a"); !locked || l.Begin("user:a", "addr:1") {
		t.Error("not locked")
	}
	if !l.Begin("user:b", "addr:1") {
		t.Error("another user is locked, too")
	}
	now = now.Add(10 * time.Minute)
	if !l.Begin("user:a") {
		t.Error("the lock does not end")
	}
	l.Forget("user:a")
	for range 2 {
		l.Begin("user:a")
	}
	l.Forget("user:a")
	if first, second := l.Begin("user:a"), l.Begin("user:a"); !first || !second {
		t.Error("a success does not forget earlier slips")
	}
	// An address that tries many users is locked even if one of them succeeds.
	for i := range 3 {
		user := fmt.Sprint("user:", i)
		if !l.Begin(user, "addr:9") {
			t.Fatal("locked too early")
		}
		if i == 0 {
			l.Forget(user)
			l.Succeed("addr:9")
		}
	}
	if !l.Begin("user:x", "addr:9") {
		t.Error("2 failures of the address locked it, the limit is 3")
	}
	if l.Begin("user:y", "addr:9") {
		t.Error("3 failures of the address did not lock it")
	}
	l.Forget("addr:9")
	if !l.Begin("user:y", "addr:9") {
		t.Error("Forget does not unlock")
	}
}

func TestLimiterIsBounded(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	l := NewLimiter(LimiterConfig{Attempts: 1, Window: time.Minute, Duration: time.Hour, Now: func() time.Time { return now }})
	l.Begin("locked")
	l.cfg.Attempts = 2
	for i := range maxKeys + 10 {
		l.Begin(fmt.Sprint(i))
	}
	if len(l.m) > maxKeys {
		t.Errorf("%d keys are held, at most %d", len(l.m), maxKeys)
	}
	if _, locked := l.Locked("locked"); !locked {
		t.Error("a flood of new keys unlocked an old one")
	}
}
