package audit

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emmansun/gmsm/sm3"
)

// sealing returns a store in a folder of its own. AES stands in for SM4, and a
// digest for the signature: the format does not know which they are.
func sealing(t testing.TB) *Sealing {
	return &Sealing{
		Dir: filepath.Join(t.TempDir(), "audit"), Key: []byte("0123456789abcdef0123456789abcdef"),
		Seal: func(key []byte) (cipher.AEAD, error) {
			b, err := aes.NewCipher(key)
			if err != nil {
				return nil, err
			}
			return cipher.NewGCM(b)
		},
		Sign: func(text []byte) ([]byte, [][]byte, error) {
			sum := sm3.Sum(append([]byte("owner"), text...))
			return sum[:], [][]byte{{1}}, nil
		},
	}
}

func verified(_ [][]byte, text, signature []byte, _ time.Time) error {
	if sum := sm3.Sum(append([]byte("owner"), text...)); !bytes.Equal(sum[:], signature) {
		return errors.New("the signature is wrong")
	}
	return nil
}

// fill writes records from to to-1 through a File of its own.
func fill(t testing.TB, s *Sealing, from, to int, maxBytes int64) {
	t.Helper()
	f, err := OpenFile(FileConfig{Sealed: s, MaxBytes: maxBytes})
	if err != nil {
		t.Fatal(err)
	}
	for i := from; i < to; i++ {
		f.Write(&Record{Kind: Decision, Remote: "192.0.2.1", UserID: "USR00000001", RequestID: fmt.Sprint("r", i)})
		if i%50 == 0 {
			time.Sleep(2 * gatherFor) // more than one frame
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if st := f.Stats(); st.Dropped != 0 || int(st.Written) != to-from {
		t.Fatalf("%+v", st)
	}
}

func contents(t testing.TB, s *Sealing) []string {
	t.Helper()
	var b bytes.Buffer
	if _, err := (Selection{}).Copy(&b, s); err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(b.String()), "\n")
}

// Records come back in order over restarts and rotations, nothing of them can
// be read in the files, and the whole is proved.
func TestGCR002_M41_SealedStoreIsWholeOverRestarts(t *testing.T) {
	s := sealing(t)
	for i := range 3 {
		fill(t, s, i*200, i*200+200, 1<<10)
	}
	lines := contents(t, s)
	if len(lines) != 600 {
		t.Fatalf("%d records", len(lines))
	}
	for i, l := range lines {
		if !strings.Contains(l, fmt.Sprintf(`"request_id":"r%d"`, i)) {
			t.Fatalf("record %d is %s", i, l)
		}
	}
	p, err := s.Verify(verified)
	if err != nil || !p.Whole || p.Records != 600 || p.Signed != 600 || p.From != 1 || p.Checkpoints < 3 || p.Segments < 6 || p.Torn != 0 {
		t.Errorf("%+v, %v", p, err)
	}
	files, err := os.ReadDir(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range files {
		raw, err := os.ReadFile(filepath.Join(s.Dir, e.Name()))
		fi, _ := e.Info()
		if err != nil || bytes.Contains(raw, []byte("USR0")) || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, mode %v", e.Name(), err, fi.Mode())
		}
	}
	if n, err := (Selection{Last: 7}).Copy(&bytes.Buffer{}, s); n != 7 || err != nil {
		t.Errorf("the last 7: %d, %v", n, err)
	}
	other := *s
	other.Key = []byte("another key, as long as needed..")
	if err := other.Read(func(uint64, time.Time, []byte) error { return nil }); err == nil {
		t.Error("another key reads it")
	}
}

// Whatever is changed, cut off before the last checkpoint, moved or taken out
// is found; reading never fails beyond the part that was altered.
func TestGCR002_M41_AlterationsAreFound(t *testing.T) {
	s := sealing(t)
	for i := range 2 {
		fill(t, s, i*300, i*300+300, 1<<10)
	}
	files, err := sealedFiles(s.Dir)
	if err != nil || len(files) < 6 {
		t.Fatal(len(files), err)
	}
	saved := map[string][]byte{}
	for _, f := range files {
		if saved[f.path], err = os.ReadFile(f.path); err != nil {
			t.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(4, 1))
	try := func(what string, change func() error) {
		t.Helper()
		if err := change(); err != nil {
			t.Fatal(err)
		}
		p, err := s.Verify(verified)
		if err != nil || p.Whole {
			t.Errorf("%s was not found: %+v, %v", what, p, err)
		}
		_ = s.Read(func(uint64, time.Time, []byte) error { return nil })
		for path, raw := range saved {
			if err := os.WriteFile(path, raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 100 {
		f := files[rng.IntN(len(files))]
		raw := bytes.Clone(saved[f.path])
		at := rng.IntN(len(raw))
		if i := len(files) - 1; f.path == files[i].path { // of the newest, the end is only as old as its last checkpoint
			at = rng.IntN(len(raw) - frameHeader - sm3.Size - tagBytes)
		}
		raw[at] ^= 1 << rng.IntN(8)
		try(fmt.Sprintf("flip %d of byte %d of %s", i, at, filepath.Base(f.path)), func() error { return os.WriteFile(f.path, raw, 0o600) })
	}
	for i, f := range files[:len(files)-1] {
		try(fmt.Sprintf("half of segment %d", i), func() error { return os.Truncate(f.path, int64(len(saved[f.path])/2)) })
		if i > 0 {
			try(fmt.Sprintf("segment %d taken out", i), func() error { return os.Remove(f.path) })
		}
		try(fmt.Sprintf("segment %d in place of the next", i), func() error { return os.WriteFile(files[i+1].path, saved[f.path], 0o600) })
	}
	if p, err := s.Verify(verified); err != nil || !p.Whole {
		t.Errorf("afterwards: %+v, %v", p, err)
	}
	if p, err := s.Verify(func([][]byte, []byte, []byte, time.Time) error { return errors.New("no") }); err != nil || p.Whole {
		t.Errorf("with a signature that is wrong: %+v, %v", p, err)
	}
}

// A process that is killed leaves a torn end: it is counted, no fault, and the
// next one goes on behind it.
func TestSealedStoreGoesOnAfterACrash(t *testing.T) {
	s := sealing(t)
	fill(t, s, 0, 120, 1<<20)
	files, _ := sealedFiles(s.Dir)
	raw, err := os.ReadFile(files[0].path)
	if err != nil {
		t.Fatal(err)
	}
	// The end frame and the checkpoint never came, and the last frame is half there.
	if err := os.Truncate(files[0].path, int64(len(raw)*3/4)); err != nil {
		t.Fatal(err)
	}
	n := len(contents(t, s))
	fill(t, s, 500, 600, 1<<20)
	p, err := s.Verify(verified)
	if err != nil || !p.Whole || p.Torn != 1 || int(p.Records) != n+100 || p.Signed != p.Records || n == 0 || n >= 120 {
		t.Errorf("%d records were left of 120: %+v, %v", n, p, err)
	}
}

// A checkpoint each minute in which there was something; records go when they
// are as old as they must become, and not before; a verb may delete earlier.
func TestGCR002_M41_CheckpointsAndRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := sealing(t)
		f, err := OpenFile(FileConfig{Sealed: s})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			f.Write(&Record{Kind: System, RequestID: fmt.Sprint(i)})
			time.Sleep(62 * time.Second)
			if p, err := s.Verify(verified); err != nil || p.Checkpoints != i+1 || p.Signed != uint64(i+1) {
				t.Errorf("after %d minutes: %+v, %v", i+1, p, err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}

		s = sealing(t)
		if f, err = OpenFile(FileConfig{Sealed: s, MaxBytes: 1, Sync: 20 * time.Minute}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for i := range 10 {
			f.Write(&Record{Kind: System, RequestID: fmt.Sprint(i)})
			time.Sleep(24 * time.Hour)
		}
		proof := func() *StoreProof {
			t.Helper()
			p, err := s.Verify(verified)
			if err != nil || !p.Whole {
				t.Fatalf("%+v, %v", p, err)
			}
			return p
		}
		if p := proof(); p.Checkpoints < 10 || p.Records != 10 || p.Signed != 10 {
			t.Errorf("after ten days: %+v", p)
		}
		time.Sleep(DefaultKeepFor - 9*24*time.Hour - time.Hour) // the second is as old in 23 hours
		if p := proof(); p.Oldest.Sub(began) > time.Minute {
			t.Errorf("the oldest was deleted too early: %+v", p)
		}
		time.Sleep(3 * time.Hour)
		if p := proof(); p.From != 2 {
			t.Errorf("the oldest was not deleted in its time: %+v", p)
		}
		n, err := f.Delete(time.Now().Add(-DefaultKeepFor + 5*24*time.Hour))
		if err != nil || n == 0 {
			t.Errorf("%d segments deleted, %v", n, err)
		}
		if p := proof(); p.From <= 2 || p.From > 8 {
			t.Errorf("after a deletion: %+v", p)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if all := strings.Join(contents(t, s), "\n"); strings.Count(all, "audit delete") != 2 || !strings.Contains(all, "asked for all before") {
			t.Errorf("deletions are not recorded: %s", all)
		}
		if _, err := f.Delete(time.Now()); err == nil {
			t.Error("a closed store deletes")
		}
	})
}

// Whoever sets the clock forward, by mistake or on purpose, does not empty the
// store, and a damaged header does not date what is beside it.
func TestR17_AClockSetForwardDeletesNoRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var set time.Duration
		now := func() time.Time { return time.Now().Add(set) }
		s := sealing(t)
		w, err := openSealed(*s, 1, now, func() {})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			if err := w.write(fmt.Appendf(nil, "{\"n\":%d}\n", i), 1); err != nil {
				t.Fatal(err)
			}
		}
		set = 2 * DefaultKeepFor
		for range 23 {
			time.Sleep(time.Hour)
			if err := w.tick(); err != nil {
				t.Fatal(err)
			}
		}
		if len(w.old) != 3 {
			t.Fatalf("%d closed segments are left of 3 after the clock was set forward", len(w.old))
		}
		set = 0
		for range 30 {
			time.Sleep(time.Hour)
			if err := w.tick(); err != nil {
				t.Fatal(err)
			}
		}
		if len(w.old) != 3 {
			t.Fatalf("%d closed segments are left of 3 after the clock was set right", len(w.old))
		}
		raw, err := os.ReadFile(w.old[1].path)
		if err != nil {
			t.Fatal(err)
		}
		raw[45] ^= 1
		if err := errors.Join(w.close(), os.WriteFile(w.old[1].path, raw, 0o600)); err != nil {
			t.Fatal(err)
		}
		if w, err = openSealed(*s, 1, now, func() {}); err != nil {
			t.Fatal(err)
		}
		if w.tick(); len(w.old) != 4 {
			t.Errorf("%d closed segments are left of 4 beside a damaged header", len(w.old))
		}
		if err := w.close(); err != nil {
			t.Fatal(err)
		}
	})
}

// Beyond its bound the oldest go, whatever their age, and a record says so.
func TestSealedStoreIsBounded(t *testing.T) {
	s := sealing(t)
	s.Total = 16 << 10
	f, err := OpenFile(FileConfig{Sealed: s, MaxBytes: 2 << 10, Sync: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2000 {
		f.Write(&Record{Kind: Decision, RequestID: fmt.Sprint("r", i)})
		if i%20 == 0 {
			time.Sleep(gatherFor)
		}
	}
	time.Sleep(20 * time.Millisecond)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := sealedFiles(s.Dir)
	var total int64
	for _, x := range files {
		total += x.size
	}
	if err != nil || total > s.Total+8<<10 {
		t.Errorf("%d bytes are kept of at most %d: %v", total, s.Total, err)
	}
	p, err := s.Verify(verified)
	if err != nil || !p.Whole || p.From == 1 {
		t.Errorf("%+v, %v", p, err)
	}
	if all := strings.Join(contents(t, s), "\n"); !strings.Contains(all, "total_bytes") {
		t.Error("no record says that some went")
	}
}

func FuzzSealedSegment(f *testing.F) {
	s := sealing(f)
	_, _ = crand.Read(s.Key) // never fails; each process that fuzzes has a genuine segment of its own, and no other is
	fill(f, s, 0, 10, 1<<20)
	files, _ := sealedFiles(s.Dir)
	raw, err := os.ReadFile(files[0].path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(raw[:sealedHeader])
	f.Add(raw[:len(raw)-9])
	genuine := map[string]bool{}
	for _, l := range contents(f, s) {
		genuine[l] = true
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(files[0].path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_ = s.Read(func(_ uint64, _ time.Time, line []byte) error {
			if !genuine[string(line)] {
				t.Errorf("invented: %s", line)
			}
			return nil
		})
		if p, err := s.Verify(verified); err != nil || p.Whole && !bytes.Equal(b, raw) && p.Torn == 0 && p.Records != 0 && len(b) >= len(raw) {
			t.Errorf("%d bytes: %+v, %v", len(b), p, err)
		}
	})
}
