package ctlclient

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/emmansun/gmsm/sm3"
	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/internal/disk"
	"github.com/yumen-zt/yumen/wire"
)

// state is the folder of what a gateway must not forget: the highest versions
// seen, and the last good lists as they came, signed and sealed. Only the
// goroutine that applies lists uses it; temp files may be made by others.
//
//	versions.json            highest versions, and which files are in force
//	witness                  that this is the folder that was left, no copy
//	grants-VERSION-RANDOM    a list as it came; deltas-... the deltas since
//	policies-VERSION-RANDOM
//
// A list is written beside, synced and renamed, then versions.json names it,
// then the older ones go: a crash leaves the old list or the new one.
type state struct {
	dir  string
	lock io.Closer

	altered error // versions.json could not be read
	theirs  bool  // another process writes here

	mu       sync.Mutex
	v        versions  // guarded by mu
	key      []byte    // of the witness; guarded by mu
	w        witness   // as it stands on disk; guarded by mu
	deltaSum hash.Hash // of the deltas file so far; guarded by mu
}

// versions is versions.json.
type versions struct {
	Grants   storedList `json:"grants"`
	Policies storedList `json:"policies"`
}

// storedList says what was seen and what is stored of one list.
type storedList struct {
	Highest uint64 `json:"highest,string"`
	Digest  string `json:"digest,omitempty"` // of the rows of the list of version Highest, when it came whole
	File    string `json:"file,omitempty"`
	Head    string `json:"head,omitempty"`          // SM3 of the file's first line, the manifest, which vouches for the rest
	Deltas  string `json:"deltas,omitempty"`        // file of the deltas since, grants only
	Since   uint64 `json:"since,string,omitempty"`  // policies only: deltas up to this version are in its locks
	Stored  uint64 `json:"stored,string,omitempty"` // version of the file
}

// maxDeltaFile is how many bytes of deltas are kept before a full list takes
// their place.
const maxDeltaFile = 4 << 20

// errAltered means that a stored file is not the one that was written.
var errAltered = errors.New("the file is not the one that was stored")

// openState opens or makes dir and takes its lock: one process, one folder.
func openState(dir string) (*state, error) {
	if dir == "" {
		return nil, errors.New("open link state: no folder (set state_dir)")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open link state: %w", err)
	}
	lock, err := disk.Lock(filepath.Join(dir, "link.lock"))
	if err != nil {
		return nil, fmt.Errorf("open link state: %s is in use by another process: %w", dir, err)
	}
	s := &state{dir: dir, lock: lock}
	raw, err := os.ReadFile(filepath.Join(dir, "versions.json"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, nil
	case err != nil:
		lock.Close()
		return nil, fmt.Errorf("open link state: %w", err)
	}
	if err := json.Unmarshal(raw, &s.v); err != nil {
		s.altered = fmt.Errorf("read versions.json: %w", err)
		s.v = versions{}
		s.recoverFloors()
		os.Rename(filepath.Join(dir, "versions.json"), filepath.Join(dir, "versions.json.bad"))
	}
	return s, nil
}

// recoverFloors takes the highest versions from the names of the files, when
// versions.json cannot be read: no list is in force then, but an older one is
// still refused.
func (s *state) recoverFloors() {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		kind, rest, _ := strings.Cut(e.Name(), "-")
		number, _, _ := strings.Cut(rest, "-")
		n, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			continue
		}
		switch kind {
		case "grants", "deltas":
			s.v.Grants.Highest = max(s.v.Grants.Highest, n)
		case "policies":
			s.v.Policies.Highest = max(s.v.Policies.Highest, n)
		}
	}
}

func (s *state) close() { s.lock.Close() }

// of returns what is known of a list.
func (s *state) of(name wire.ListName) storedList {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *s.v.of(name)
}

func (v *versions) of(name wire.ListName) *storedList {
	if name == wire.GrantsList {
		return &v.Grants
	}
	return &v.Policies
}

func (s *state) floor(name wire.ListName) Floor {
	l := s.of(name)
	return Floor{Version: l.Highest, Digest: l.Digest}
}

// saw raises the highest version in memory; the next save writes it.
func (s *state) saw(name wire.ListName, version uint64, digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.v.of(name); version > l.Highest || version == l.Highest && digest != "" {
		l.Highest, l.Digest = version, digest
	}
}

// deltas returns the lines of the stored deltas. A line that a crash cut short
// is left out.
func (s *state) deltas() ([][]byte, error) {
	l := s.of(wire.GrantsList)
	if l.Deltas == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(filepath.Join(s.dir, filepath.Base(l.Deltas)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	end := bytes.LastIndexByte(raw, '\n')
	if end != len(raw)-1 && !s.theirs {
		if err := os.Truncate(filepath.Join(s.dir, filepath.Base(l.Deltas)), int64(end+1)); err != nil {
			return nil, err
		}
	}
	if end < 0 {
		return nil, nil
	}
	return bytes.Split(raw[:end], []byte{'\n'}), nil
}

// download takes the bytes of a list while it is verified. It never fails a
// write, so that a full disk does not keep a revocation from being applied;
// the error shows when the list is stored.
type download struct {
	f    *os.File
	sum  hash.Hash // of the first line
	head bool      // the first line has ended
	err  error
}

func (s *state) download() *download {
	d := &download{sum: sm3.New()}
	d.f, d.err = os.CreateTemp(s.dir, "incoming-*")
	return d
}

func (d *download) Write(p []byte) (int, error) {
	if !d.head {
		first, _, ended := bytes.Cut(p, []byte{'\n'})
		d.sum.Write(first)
		d.head = ended
	}
	if d.err == nil {
		_, d.err = d.f.Write(p)
	}
	return len(p), nil
}

// take moves the file to another download, so that it outlives this one.
func (d *download) take() *download {
	t := *d
	d.f = nil
	return &t
}

// drop removes the file when it was not stored.
func (d *download) drop() {
	if d.f != nil {
		d.f.Close()
		os.Remove(d.f.Name())
		d.f = nil
	}
}

// store puts a verified list in force on disk. carried are delta lines whose
// locks and revocations must outlive the deltas file that goes.
func (s *state) store(name wire.ListName, version uint64, digest string, since uint64, d *download, carried [][]byte) error {
	if d.err != nil {
		return fmt.Errorf("store %s: %w", name, d.err)
	}
	if d.f == nil {
		return nil // stored before
	}
	if err := d.f.Sync(); err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	mark := strings.TrimPrefix(filepath.Base(d.f.Name()), "incoming-")
	next := storedList{
		Highest: version, Digest: digest, Stored: version, Since: since,
		File: fmt.Sprintf("%s-%d-%s", name, version, mark), Head: hex.EncodeToString(d.sum.Sum(nil)),
	}
	if name == wire.GrantsList {
		next.Deltas = fmt.Sprintf("deltas-%d-%s", version, mark)
		if len(carried) > 0 {
			if err := s.write(next.Deltas, append(bytes.Join(carried, []byte{'\n'}), '\n')); err != nil {
				return fmt.Errorf("store %s: %w", name, err)
			}
		}
	}
	if err := os.Rename(d.f.Name(), filepath.Join(s.dir, next.File)); err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	d.f.Close()
	d.f = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.v.of(name)
	before := *l
	next.Highest = max(before.Highest, version)
	if next.Highest != version {
		next.Digest = before.Digest
	}
	*l = next
	if err := s.save(); err != nil {
		*l = before
		return fmt.Errorf("store %s: %w", name, err)
	}
	for _, old := range []string{before.File, before.Deltas} {
		if old != "" && old != next.File && old != next.Deltas {
			os.Remove(filepath.Join(s.dir, filepath.Base(old)))
		}
	}
	return nil
}

// save writes versions.json, and the witness before and after it: whichever of
// the two a crash leaves, the witness knows it. The caller holds mu.
func (s *state) save() error {
	raw, err := json.Marshal(&s.v)
	if err != nil {
		return err
	}
	if err := s.mark(true, func(w *witness) { w.Next = hexSum(raw) }); err != nil {
		return err
	}
	if err := s.write("versions.json", raw); err != nil {
		return err
	}
	sum, n := s.restart()
	s.deltaSum = sum
	// An error leaves the one that knows both.
	_ = s.mark(false, func(w *witness) {
		w.Versions, w.Next = hexSum(raw), ""
		w.Deltas, w.Bytes, w.DeltaSM3 = s.v.Grants.Deltas, n, hex.EncodeToString(sum.Sum(nil))
	})
	return nil
}

// write replaces a file of the folder: beside, sync, rename, sync the folder.
func (s *state) write(name string, raw []byte) (err error) {
	f, err := os.CreateTemp(s.dir, "new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(raw); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), filepath.Join(s.dir, name)); err != nil {
		return err
	}
	return disk.SyncDir(s.dir)
}

// append adds one delta. It reports whether the deltas have grown so large that
// a full list should take their place.
func (s *state) append(line []byte) (full bool, err error) {
	l := s.of(wire.GrantsList)
	if l.Deltas == "" {
		return true, errors.New("store delta: no list is stored yet")
	}
	f, err := os.OpenFile(filepath.Join(s.dir, l.Deltas), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return true, fmt.Errorf("store delta: %w", err)
	}
	defer f.Close()
	whole := append(bytes.Clone(bytes.TrimSpace(line)), '\n')
	if _, err := f.Write(whole); err != nil {
		return true, fmt.Errorf("store delta: %w", err)
	}
	if err := f.Sync(); err != nil {
		return true, fmt.Errorf("store delta: %w", err)
	}
	s.mu.Lock()
	s.grown(whole)
	s.mu.Unlock()
	st, err := f.Stat()
	return err == nil && st.Size() > maxDeltaFile, nil
}

// sweep removes what a crash left behind.
func (s *state) sweep() {
	keep := map[string]bool{}
	s.mu.Lock()
	for _, n := range []string{s.v.Grants.File, s.v.Grants.Deltas, s.v.Policies.File} {
		keep[n] = true
	}
	s.mu.Unlock()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		for _, prefix := range []string{"incoming-", "new-", "grants-", "policies-", "deltas-"} {
			if strings.HasPrefix(e.Name(), prefix) && !keep[e.Name()] && e.Type().IsRegular() {
				os.Remove(filepath.Join(s.dir, e.Name()))
			}
		}
	}
}
