package ctlclient

import (
	"crypto/hmac"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/internal/disk"
)

// witness is the file of the state folder that cannot be copied: it names the
// very file that it stands in, by inode and time of birth, and what else is in
// the folder, by hash. It is made anew at each change, so neither a folder that
// was put back from a backup, as a whole or in part, nor one that was copied
// passes for the one that this gateway left (docs/adr/0007). It is sealed by
// HMAC-SM3 under a key of the key folder.
type witness struct {
	Inode    uint64 `json:"inode"`
	Birth    int64  `json:"birth"`              // unix nanoseconds; 0 where the file system keeps none
	Versions string `json:"versions,omitempty"` // SM3 of versions.json
	Next     string `json:"next,omitempty"`     // of the one that is taking its place
	Deltas   string `json:"deltas,omitempty"`   // the file of the deltas
	Bytes    int64  `json:"bytes,omitempty"`    // of it, at least
	DeltaSM3 string `json:"deltaSM3,omitempty"` // of these bytes
	Contact  int64  `json:"contact,omitempty"`  // when the control center proved to be there, unix nanoseconds
	MAC      string `json:"mac"`
}

const witnessFile = "witness"

// errNoWitness is why a folder of an earlier version, or one without its
// witness, is not trusted.
var errNoWitness = errors.New("the witness file is missing")

func (w witness) mac(key []byte) string {
	w.MAC = ""
	raw, err := json.Marshal(&w, json.Deterministic(true))
	if err != nil {
		panic(err) // numbers and texts of our own
	}
	h := hmac.New(sm3.New, key)
	h.Write([]byte("yumen state witness v1\n"))
	h.Write(raw)
	return hex.EncodeToString(h.Sum(nil))
}

// prove checks that the folder is the one that was left, and readies s to keep
// it so. An error says why what is stored may be older than what was in force.
func (s *state) prove(key []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key = key
	w, err := s.readWitness()
	versions, verr := os.ReadFile(filepath.Join(s.dir, "versions.json"))
	switch {
	case errors.Is(err, fs.ErrNotExist) && errors.Is(verr, fs.ErrNotExist):
		return nil // a new folder
	case errors.Is(err, fs.ErrNotExist):
		return errNoWitness
	case err != nil:
		return err
	case verr != nil && !errors.Is(verr, fs.ErrNotExist):
		return verr
	}
	have := ""
	if verr == nil {
		have = hexSum(versions)
	}
	if have != w.Versions && (have == "" || have != w.Next) {
		return errors.New("versions.json is not the one that was left here")
	}
	if w.Deltas != "" && w.Deltas == s.v.Grants.Deltas {
		if err := s.checkDeltas(w); err != nil {
			return err
		}
	}
	s.w = *w
	if have == w.Next && have != "" {
		s.w.Versions = have
	}
	return nil
}

// readWitness returns the witness if it is whole and stands where it was
// written.
func (s *state) readWitness() (*witness, error) {
	f, err := os.Open(filepath.Join(s.dir, witnessFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, 8192))
	if err != nil {
		return nil, err
	}
	var w witness
	if json.Unmarshal(raw, &w) != nil || !hmac.Equal([]byte(w.mac(s.key)), []byte(w.MAC)) {
		return nil, errors.New("the witness file was altered, or is of another gateway")
	}
	inode, birth, err := identityOf(f)
	if err != nil {
		return nil, err
	}
	if inode != w.Inode || birth != w.Birth {
		return nil, errors.New("the witness file is a copy")
	}
	return &w, nil
}

// checkDeltas checks that the deltas begin with what the witness knows of them.
// A crash may have added to them, never taken away.
func (s *state) checkDeltas(w *witness) error {
	f, err := os.Open(filepath.Join(s.dir, filepath.Base(w.Deltas)))
	if errors.Is(err, fs.ErrNotExist) && w.Bytes == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sm3.New()
	if n, err := io.Copy(sum, io.LimitReader(f, w.Bytes)); err != nil || n != w.Bytes {
		return fmt.Errorf("%s is shorter than it was left", w.Deltas)
	}
	if w.Bytes > 0 && hex.EncodeToString(sum.Sum(nil)) != w.DeltaSM3 {
		return fmt.Errorf("%s is not the one that was left here", w.Deltas)
	}
	return nil
}

// mark writes the witness anew. durable syncs it; without, a power cut may
// bring the one before back, which knows less and nothing wrong. The caller
// holds mu.
func (s *state) mark(durable bool, change func(*witness)) (err error) {
	if s.key == nil {
		return nil // prove was never called: nothing is kept
	}
	next := s.w
	change(&next)
	f, err := os.CreateTemp(s.dir, "new-*")
	if err != nil {
		return fmt.Errorf("write witness: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write witness: %w", err)
		}
	}()
	defer f.Close()
	if next.Inode, next.Birth, err = identityOf(f); err != nil {
		return err
	}
	next.MAC = next.mac(s.key)
	raw, err := json.Marshal(&next, json.Deterministic(true))
	if err != nil {
		return err
	}
	if _, err = f.Write(raw); err != nil {
		return err
	}
	if durable {
		if err = f.Sync(); err != nil {
			return err
		}
	}
	if err = os.Rename(f.Name(), filepath.Join(s.dir, witnessFile)); err != nil {
		return err
	}
	s.w = next
	if durable {
		return disk.SyncDir(s.dir)
	}
	return nil
}

// contacted keeps when the control center proved to be there.
func (s *state) contacted(at time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mark(false, func(w *witness) { w.Contact = at.UnixNano() })
}

// lastContact returns what contacted kept; zero if it never was.
func (s *state) lastContact() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.w.Contact == 0 {
		return time.Time{}
	}
	return time.Unix(0, s.w.Contact)
}

// grown notes that the deltas file now has n more bytes, line. The caller holds
// mu.
func (s *state) grown(line []byte) {
	if s.v.Grants.Deltas != s.w.Deltas {
		return
	}
	n := s.w.Bytes + int64(len(line))
	if s.deltaSum == nil {
		s.deltaSum, n = s.restart()
	} else {
		s.deltaSum.Write(line)
	}
	// An error leaves a witness that knows less.
	_ = s.mark(false, func(w *witness) { w.Bytes, w.DeltaSM3 = n, hex.EncodeToString(s.deltaSum.Sum(nil)) })
}

// restart begins the hash of the deltas file anew, with what is in it. The
// caller holds mu.
func (s *state) restart() (sum hash.Hash, n int64) {
	sum = sm3.New()
	if s.v.Grants.Deltas == "" {
		return sum, 0
	}
	f, err := os.Open(filepath.Join(s.dir, filepath.Base(s.v.Grants.Deltas)))
	if err != nil {
		return sum, 0
	}
	defer f.Close()
	if n, err = io.Copy(sum, f); err != nil {
		return sm3.New(), 0 // nothing is known of it then
	}
	return sum, n
}

func hexSum(b []byte) string {
	h := sm3.Sum(b)
	return hex.EncodeToString(h[:])
}
