package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emmansun/gmsm/sm2"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/wire"
)

func TestGCR002_M28_AlteredStateIsRefusedAndReported(t *testing.T) {
	stateFile := func(dir string) string { return filepath.Join(dir, "state", stateName) }
	edit := func(t *testing.T, file string, f func(string) string) {
		t.Helper()
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(f(string(b))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, alter := range map[string]func(t *testing.T, dir string){
		"another user": func(t *testing.T, dir string) {
			edit(t, stateFile(dir), func(s string) string { return strings.Replace(s, testUser, "USR00000002", 1) })
		},
		"a field more": func(t *testing.T, dir string) {
			edit(t, stateFile(dir), func(s string) string { return strings.Replace(s, `{"body"`, `{"x":1,"body"`, 1) })
		},
		"no signature": func(t *testing.T, dir string) {
			edit(t, stateFile(dir), func(s string) string { return s[:strings.Index(s, `,"signature"`)] + "}" })
		},
		"empty": func(t *testing.T, dir string) { edit(t, stateFile(dir), func(string) string { return "" }) },
		"removed": func(t *testing.T, dir string) {
			if err := os.Remove(stateFile(dir)); err != nil {
				t.Fatal(err)
			}
		},
		"removed with its folder, and a root exchanged": func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Dir(stateFile(dir))); err != nil {
				t.Fatal(err)
			}
			edit(t, filepath.Join(dir, "keys", "tls-root.crt"), func(s string) string { return s + "x" })
		},
		"another root": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "keys", "tls-root.crt"), func(s string) string { return s + "x" })
		},
		"no root": func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "keys", "message-root.crt")); err != nil {
				t.Fatal(err)
			}
		},
		"a root more": func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "keys", "list-root.crt"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			keys := filepath.Join(dir, "keys")
			if err := os.Mkdir(keys, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, f := range []string{"tls-root.crt", "message-root.crt"} {
				if err := os.WriteFile(filepath.Join(keys, f), []byte("root "+f), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			in := func(c *Config) { c.Dir = dir }
			first := withKeys(t, in)
			if err := first.a.state.setUser(testUser); err != nil {
				t.Fatal(err)
			}
			if again := withKeys(t, in); again.a.tamper != nil || again.a.state.user() != testUser {
				t.Fatalf("an untouched state was not taken: %v, user %q", again.a.tamper, again.a.state.user())
			}
			alter(t, dir)
			r := withKeys(t, in)
			err := r.a.Run(t.Context())
			var altered *AlteredError
			if !errors.As(err, &altered) || len(r.a.Status().Faces) != 0 {
				t.Fatalf("got %v, want a refusal before any face listens", err)
			}
			if len(r.link.allSent()) != 1 {
				t.Fatalf("%d alerts sent, want 1", len(r.link.allSent()))
			}
			m := r.link.allSent()[0]
			if m.ExceptionAlertType != string(alert.StateAltered) || m.ExceptionAlertLevel != int(alert.Severe) || m.ExceptionAlertContent == "" || m.Timestamp == "" {
				t.Errorf("Table 22 is %+v", m)
			}
			if err := m.Validate(wire.Strict); err != nil {
				t.Errorf("Table 22: %v", err)
			}
		})
	}
}

// withKeys makes a rig in the folder that set names, whose key folder exists.
func withKeys(t *testing.T, set func(*Config)) *rig {
	t.Helper()
	return newRig(t, func(c *Config) { set(c); c.User = testUser })
}

func TestAStateOfAnotherKeyIsRefused(t *testing.T) {
	dir := t.TempDir()
	s, err := openState(dir+"/state", dir, testID, testKey())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.check(); err != nil {
		t.Fatal(err)
	}
	var altered *AlteredError
	if _, err := openState(dir+"/state", dir, Identity{AgentID: "AGT00000002", DeviceID: testID.DeviceID}, testKey()); !errors.As(err, &altered) {
		t.Errorf("another agent's state: %v", err)
	}
	if _, err := openState(dir+"/state", dir, testID, otherKey{}); !errors.As(err, &altered) {
		t.Errorf("another key: %v", err)
	}
}

// A new enrolment makes new keys: it begins a state of its own, whatever the
// old one left in the key folder.
func TestAFreshEnrolmentBeginsAState(t *testing.T) {
	dir := t.TempDir()
	if _, err := openState(dir+"/state", dir, testID, testKey()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir + "/state"); err != nil {
		t.Fatal(err)
	}
	var altered *AlteredError
	if _, err := openState(dir+"/state", dir, testID, testKey()); !errors.As(err, &altered) || !strings.Contains(err.Error(), "removed") || !strings.Contains(err.Error(), "device code") {
		t.Errorf("the same keys without their state: %v, want how to start anew", err)
	}
	k, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := NewStateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // begun, then taken
		if _, err := openState(dir+"/state", dir, testID, fresh); err != nil {
			t.Fatalf("new keys: %v", err)
		}
	}
	// A state of before there were marks gets one.
	if err := os.Remove(filepath.Join(dir, markName)); err != nil {
		t.Fatal(err)
	}
	if _, err := openState(dir+"/state", dir, testID, fresh); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "state", stateName)); err != nil {
		t.Fatal(err)
	}
	if _, err := openState(dir+"/state", dir, testID, fresh); !errors.As(err, &altered) {
		t.Errorf("removed after the mark came: %v", err)
	}
}

type otherKey struct{}

func (otherKey) Sign([]byte) ([]byte, error) { return []byte("x"), nil }
func (otherKey) Verify([]byte, []byte) bool  { return false }

func TestStateFolderOpenToOthersIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := openState(dir, dir, testID, testKey()); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("got %v, want the remedy", err)
	}
}

func TestGCR002_M101_StateAlteredWhileRunningEndsTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := newRig(t, func(c *Config) { c.Elapsed = func() time.Duration { return time.Since(start) + 1 } })
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- r.a.watch(ctx) }()
		time.Sleep(10 * time.Minute)
		if len(r.link.allSent()) != 0 {
			t.Fatalf("%d alerts about an untouched state", len(r.link.allSent()))
		}
		if err := os.Remove(filepath.Join(r.dir, "state", stateName)); err != nil {
			t.Fatal(err)
		}
		var altered *AlteredError
		if err := <-done; !errors.As(err, &altered) || len(r.link.allSent()) != 1 {
			t.Errorf("got %v and %d alerts", err, len(r.link.allSent()))
		}
	})
}

func FuzzVerifyState(f *testing.F) {
	s := &state{key: testKey()}
	f.Add([]byte(`{"body":{"version":1},"signature":"AAAA"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if b, err := s.verify(raw); err == nil {
			t.Errorf("%q was taken as %+v", raw, b)
		}
	})
}
