package ctlclient

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/internal/disk"
	"github.com/yumen-zt/yumen/wire"
)

// Evidence is the control center's newest signed acknowledgement of a class:
// it has every number up to UpTo, and Head stands for all of them.
type Evidence struct {
	Outbox   string          `json:"outbox"` // identifier of the outbox
	Class    string          `json:"class"`
	UpTo     uint64          `json:"up_to"`
	Head     string          `json:"head"`
	At       time.Time       `json:"at"`       // when it was verified here
	Control  string          `json:"control"`  // who signed
	Envelope jsontext.Value  `json:"envelope"` // as it came, with its signature
	Former   *FormerEvidence `json:"former,omitempty"`
}

// FormerEvidence is an acknowledgement that a later one does not continue: the
// outbox or the control center lost its memory in between.
type FormerEvidence struct {
	Outbox   string         `json:"outbox"`
	UpTo     uint64         `json:"up_to"`
	Head     string         `json:"head"`
	At       time.Time      `json:"at"`
	Envelope jsontext.Value `json:"envelope"`
}

// saveEvidence is how long an acknowledgement may be known only in memory. What
// a crash forgets, the next session's first answer says again.
const saveEvidence = 500 * time.Millisecond

// evidence keeps the acknowledgements of an outbox in its folder, beside the
// classes: the file id, and ack-CLASS.json.
type evidence struct {
	dir   string
	saved func(c Class, upTo uint64) // called when an acknowledgement is on disk

	saving sync.Mutex // held while files are written

	mu    sync.Mutex
	id    string                // guarded by mu
	last  [NumClasses]*Evidence // guarded by mu; immutable
	lapse [NumClasses]bool      // guarded by mu; the control center has forgotten what last says
	dirty [NumClasses]bool      // guarded by mu
	timer *time.Timer           // guarded by mu; nil: nothing to save
}

// openEvidence reads what is in dir. A file that cannot be read counts as lost.
func openEvidence(dir string, saved func(Class, uint64)) (*evidence, error) {
	e := &evidence{dir: dir, saved: saved}
	if raw, err := os.ReadFile(filepath.Join(dir, "id")); err == nil && (&wire.OutboxNumber{ID: string(raw)}).Check() == nil {
		e.id = string(raw)
	} else if err := e.renew(); err != nil {
		return nil, err
	}
	for c := range NumClasses {
		raw, err := os.ReadFile(e.file(c))
		if err != nil {
			continue
		}
		v := new(Evidence)
		if json.Unmarshal(raw, v) == nil && v.Class == c.String() {
			e.last[c] = v
		}
	}
	return e, nil
}

func (e *evidence) file(c Class) string { return filepath.Join(e.dir, "ack-"+c.String()+".json") }

// renew gives the outbox another identifier: its numbers begin anew for the
// control center.
func (e *evidence) renew() error {
	var raw [16]byte
	rand.Read(raw[:])
	id := hex.EncodeToString(raw[:])
	e.saving.Lock()
	defer e.saving.Unlock()
	if err := replaceFile(filepath.Join(e.dir, "id"), []byte(id)); err != nil {
		return fmt.Errorf("name outbox: %w", err)
	}
	e.mu.Lock()
	e.id = id
	e.mu.Unlock()
	return nil
}

func (e *evidence) name() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.id
}

// of returns the newest acknowledgement of c, nil for none.
func (e *evidence) of(c Class) *Evidence {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last[c]
}

// at returns how far c is acknowledged under the present identifier.
func (e *evidence) at(c Class, sender string) place {
	e.mu.Lock()
	defer e.mu.Unlock()
	if v := e.last[c]; v != nil && v.Outbox == e.id {
		if head, err := wire.ParseOutboxHead(v.Head); err == nil {
			return place{v.UpTo, head}
		}
	}
	return place{0, wire.OutboxStart(e.id, sender, c.String())}
}

// lapsed notes that the control center no longer knows what it signed last; the
// next acknowledgement keeps that as the former one.
func (e *evidence) lapsed(c Class) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lapse[c] = true
}

// take keeps a verified acknowledgement.
func (e *evidence) take(c Class, v Evidence) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if was := e.last[c]; was != nil {
		v.Former = was.Former
		if was.Outbox != v.Outbox || was.UpTo > v.UpTo || e.lapse[c] {
			v.Former = &FormerEvidence{was.Outbox, was.UpTo, was.Head, was.At, was.Envelope}
		}
	}
	e.last[c], e.lapse[c], e.dirty[c] = &v, false, true
	if e.timer == nil {
		e.timer = time.AfterFunc(saveEvidence, func() { _ = e.save() }) // the next one tries again
	}
}

// save writes what is not written.
func (e *evidence) save() error {
	e.saving.Lock()
	defer e.saving.Unlock()
	var errs []error
	e.mu.Lock()
	last, dirty := e.last, e.dirty
	e.dirty = [NumClasses]bool{}
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
	e.mu.Unlock()
	for c, v := range last {
		if !dirty[c] {
			continue
		}
		raw, err := json.Marshal(v)
		if err == nil {
			err = replaceFile(e.file(Class(c)), raw)
		}
		if err != nil {
			e.mu.Lock()
			e.dirty[c] = true
			e.mu.Unlock()
			errs = append(errs, fmt.Errorf("keep acknowledgement: %w", err))
		}
		e.saved(Class(c), v.UpTo) // a full disk must not keep what is acknowledged
	}
	return errors.Join(errs...)
}

// replaceFile writes beside, syncs and renames.
func replaceFile(name string, raw []byte) (err error) {
	tmp := name + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(raw); err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return disk.SyncDir(filepath.Dir(name))
}
