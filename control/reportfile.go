package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// reportFile keeps what gateways and agents report, one line of JSON each, and
// in the same lines how far the control center has each sender's outbox: record
// and position are on disk together or not at all. A line is on disk before
// append returns, for the sender forgets what is acknowledged; whoever comes
// during a sync shares the next one. A file that grows too large is set aside,
// and the new one begins with all positions.
type reportFile struct {
	path    string
	most    int64         // bytes, before it is set aside
	compact bool          // what is set aside goes: it held positions only
	begin   func() []byte // the positions, as lines

	mu   sync.Mutex
	open *reportBatch // guarded by mu; waits for the writer

	writing sync.Mutex
	f       *os.File // guarded by writing; nil after a fault
	size    int64    // guarded by writing
}

type reportBatch struct {
	lines []byte
	apply []func()
	done  chan struct{}
	err   error // set before done is closed
}

// alertLine is an alert of a gateway or an agent (Tables 11 and 22).
type alertLine struct {
	Received time.Time `json:"received"`
	Table    int       `json:"table"`
	Sender   string    `json:"sender"`
	MsgID    string    `json:"msg_id"`
	DeviceID string    `json:"device_id"`
	UserID   string    `json:"user_id,omitempty"`
	Time     string    `json:"time"`
	Type     string    `json:"type"`
	Level    int       `json:"level"`
	Content  string    `json:"content"`
	Outbox   *place    `json:"outbox,omitempty"`
}

// auditLine is an audit record of a gateway.
type auditLine struct {
	Received time.Time       `json:"received"`
	Sender   string          `json:"sender"`
	MsgID    string          `json:"msg_id"`
	Record   json.RawMessage `json:"record"`
	Outbox   *place          `json:"outbox,omitempty"`
}

// placeLine is a position alone, or a gap.
type placeLine struct {
	Received time.Time  `json:"received"`
	Sender   string     `json:"sender"`
	Gap      *OutboxGap `json:"gap,omitempty"`
	Outbox   *place     `json:"outbox,omitempty"`
}

// openReportFile opens the file and gives take every line that it has. What a
// crash left of a last line was never acknowledged and is cut off.
func openReportFile(path string, most int64, compact bool, begin func() []byte, take func(line []byte)) (*reportFile, error) {
	r := &reportFile{path: path, most: most, compact: compact, begin: begin}
	source := path
	if st, err := os.Stat(path); errors.Is(err, os.ErrNotExist) || err == nil && st.Size() == 0 {
		if aside, err := filepath.Glob(path + ".2*"); err == nil && len(aside) > 0 { // died between two renames
			source = slices.Max(aside)
		}
	}
	good, err := readLines(source, take)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open report file: %w", err)
	}
	if r.f, r.size, err = openAppend(path); err != nil {
		return nil, fmt.Errorf("open report file: %w", err)
	}
	if source == path && r.size > good {
		if err := r.f.Truncate(good); err != nil {
			r.f.Close()
			return nil, fmt.Errorf("open report file: %w", err)
		}
		r.size = good
	}
	if source != path {
		if err := r.write(begin()); err != nil {
			r.f.Close()
			return nil, fmt.Errorf("open report file: %w", err)
		}
	}
	return r, nil
}

// readLines gives take each whole line and returns the bytes of them.
func readLines(path string, take func([]byte)) (good int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return good, nil
		}
		if err != nil {
			return good, err
		}
		good += int64(len(line))
		take(bytes.TrimSpace(line))
	}
}

// append puts lines on disk, then calls apply, in the order of the file.
func (r *reportFile) append(lines []byte, apply func()) error {
	r.mu.Lock()
	b := r.open
	leads := b == nil
	if leads {
		b = &reportBatch{done: make(chan struct{})}
		r.open = b
	}
	b.lines = append(b.lines, lines...)
	b.apply = append(b.apply, apply)
	r.mu.Unlock()
	if !leads {
		<-b.done
		return b.err
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	r.mu.Lock()
	r.open = nil
	r.mu.Unlock()
	defer close(b.done)
	if b.err = r.turn(); b.err == nil {
		b.err = r.write(b.lines)
	}
	if b.err != nil {
		b.err = fmt.Errorf("keep report: %w", b.err)
		return b.err
	}
	for _, f := range b.apply {
		f()
	}
	return nil
}

// turn sets the file aside when it is too large or saw a fault. The caller
// holds writing.
func (r *reportFile) turn() error {
	if r.f != nil && r.size <= r.most {
		return nil
	}
	fresh := r.path + ".new"
	os.Remove(fresh)
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	begin := r.begin()
	if _, err = f.Write(begin); err == nil {
		err = f.Sync()
	}
	aside := r.path + "." + time.Now().UTC().Format("20060102T150405.000")
	if err == nil {
		err = os.Rename(r.path, aside)
	}
	if err == nil {
		err = os.Rename(fresh, r.path)
	}
	if err != nil {
		f.Close()
		return err
	}
	if d, err := os.Open(filepath.Dir(r.path)); err == nil {
		_ = d.Sync() // the next opening reads what was set aside when the name did not last
		d.Close()
	}
	if r.compact {
		os.Remove(aside)
	}
	if r.f != nil {
		r.f.Close()
	}
	r.f, r.size = f, int64(len(begin))
	return nil
}

// write appends and syncs. After a fault the file is not written again: what a
// failed sync left of it is not known. The caller holds writing.
func (r *reportFile) write(lines []byte) error {
	_, err := r.f.Write(lines)
	if err == nil {
		if err = r.f.Sync(); err == nil {
			r.size += int64(len(lines))
			return nil
		}
	}
	_ = r.f.Truncate(r.size) // half a line would spoil the next
	r.f.Close()
	r.f = nil
	return err
}

func (r *reportFile) close() error {
	r.writing.Lock()
	defer r.writing.Unlock()
	if r.f == nil {
		return nil
	}
	return r.f.Close()
}
