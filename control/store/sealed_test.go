package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func init() {
	drivers["sealed bolt"] = func(t testing.TB, path string) Store {
		s, err := Seal(drivers["bolt"](t, path), []byte("correct horse"))
		if err != nil {
			t.Fatal(err)
		}
		// The conformance tests count revisions from 0.
		return shifted{s}
	}
}

// shifted hides the one transaction that Seal makes in a new store.
type shifted struct{ *Sealed }

func (s shifted) Rev() uint64 { return s.Sealed.Rev() - 1 }
func (s shifted) Get(k string) (Entry, bool, error) {
	e, ok, err := s.Sealed.Get(k)
	e.Created, e.Modified = e.Created-1, e.Modified-1
	return e, ok, err
}
func (s shifted) Snapshot(p string) (uint64, []Entry, error) {
	rev, es, err := s.Sealed.Snapshot(p)
	for i := range es {
		es[i].Created, es[i].Modified = es[i].Created-1, es[i].Modified-1
	}
	return rev - 1, es, err
}
func (s shifted) Txn(cs []Compare, ops []Op) (uint64, error) {
	up := make([]Compare, len(cs))
	for i, c := range cs {
		if up[i] = c; c.Modified > 0 {
			up[i].Modified++
		}
	}
	rev, err := s.Sealed.Txn(up, ops)
	var conflict *ConflictError
	if errors.As(err, &conflict) && conflict.Have > 0 {
		conflict.Have--
	}
	return rev - 1, err
}
func (s shifted) Compact(rev uint64) error { return s.Sealed.Compact(rev + 1) }
func (s shifted) Watch(from uint64) (*Watcher, error) {
	w, err := s.Sealed.Watch(from + 1)
	if err != nil {
		return nil, err
	}
	read := w.read
	return &Watcher{at: from, read: func(after uint64) (Batch, <-chan struct{}, error) {
		b, wake, err := read(after + 1)
		b.Rev--
		return b, wake, err
	}}, nil
}

func TestGCR002_M26_ValuesAreSealedAtRest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s, err := Seal(drivers["bolt"](t, path), []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "user/USR00000001", "the-secret-marker", "user/USR00000002", "another")
	k := s.Key("a")
	if len(k) != 32 || bytes.Equal(k, s.Key("b")) || !bytes.Equal(k, s.Key("a")) {
		t.Error("derived keys: not stable, or the same for two purposes")
	}
	s.Close()
	raw, err := os.ReadFile(path)
	if err != nil || bytes.Contains(raw, []byte("the-secret-marker")) {
		t.Errorf("the value stands in the file in the clear (%v)", err)
	}
	b := drivers["bolt"](t, path)
	defer b.Close()
	if _, err := Seal(b, []byte("two")); !errors.Is(err, ErrPassphrase) {
		t.Errorf("another passphrase: %v, want ErrPassphrase", err)
	}
	// A value moved to another key does not open.
	e, _, _ := b.Get("user/USR00000002")
	if _, err := b.Txn(nil, []Op{Put("user/USR00000001", e.Value)}); err != nil {
		t.Fatal(err)
	}
	s, err = Seal(b, []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Get("user/USR00000001"); err == nil {
		t.Error("a value in another's place was opened")
	}
}
