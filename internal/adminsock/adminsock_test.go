package adminsock

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestCallsCarryTheCallersUIDAndTheRolesWords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d", "admin.sock")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v, want 0600", fi.Mode(), err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second listener: %v", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Word string }
		if err := Read(r, &in); err != nil {
			Refuse(w, http.StatusBadRequest, err)
			return
		}
		if in.Word == "" {
			Refuse(w, http.StatusBadRequest, errors.New("word: missing"))
			return
		}
		Reply(w, map[string]string{"word": in.Word, "uid": UID(r)})
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, mux) }()

	c := NewClient(path)
	var out map[string]string
	if err := c.Do(ctx, "POST", "/echo", map[string]string{"Word": "x"}, &out); err != nil || out["word"] != "x" || out["uid"] != strconv.Itoa(os.Getuid()) {
		t.Errorf("answer %v, %v", out, err)
	}
	if err := c.Do(ctx, "POST", "/echo", map[string]string{}, nil); err == nil || err.Error() != "word: missing" {
		t.Errorf("refusal %v", err)
	}
	if err := c.Do(ctx, "POST", "/echo", map[string]string{"Other": "x"}, nil); err == nil {
		t.Error("an unknown field was taken")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("serve: %v", err)
	}
	if err := c.Do(context.Background(), "POST", "/echo", nil, nil); err == nil || !strings.Contains(err.Error(), "is the role running") {
		t.Errorf("with nobody there: %v", err)
	}
	// A socket that was left behind is replaced, anything else is not.
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("over a file: %v", err)
	}
}

func TestOnlyTheRolesUserAndRootMayAsk(t *testing.T) {
	h := own(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { Reply(w, "in") }))
	for uid, want := range map[string]int{"0": 200, strconv.Itoa(os.Geteuid()): 200, "unknown": 200, "65533": 403} {
		r := httptest.NewRequest("GET", "/", nil)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), uidKey{}, uid)))
		if w.Code != want {
			t.Errorf("user id %s: %d, want %d", uid, w.Code, want)
		}
	}
}
