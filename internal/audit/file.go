package audit

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/internal/alert"
)

// FileConfig is what a [File] needs. The zero value of an optional field
// selects its default.
type FileConfig struct {
	Sealed   *Sealing         // keep records sealed in a folder; nil: as lines in Path
	Path     string           // the file; older ones stand beside it with a time in their name
	MaxBytes int64            // of one file, before it is set aside; default 64 MiB
	Keep     int              // files set aside that are kept, the oldest go; default 16
	Queue    int              // records that may wait for the disk; default 16384
	Sync     time.Duration    // longest time until a record is on the disk; default 1 s
	Alerts   alert.Sink       // told of drops, at most once a minute; default none
	Now      func() time.Time // default time.Now
	Also     Sink             // gets every record, too; default none
}

// FileStats are the figures of a [File] since it was opened.
type FileStats struct {
	Written   uint64 // records
	Dropped   uint64 // records: the queue was full, or the disk refused them
	Bytes     uint64
	Rotations uint64
	Errors    uint64 // of the disk
	Queued    int    // records that wait now
}

// store is what a [File] writes to: lines in a file, or sealed segments. It is
// for one goroutine.
type store interface {
	write(lines []byte, records int) error // all of them or none
	sync() error
	tick() error // called about once a second
	close() error
}

// File is a [Sink] that keeps records on disk, mode 0600, as lines of JSON or
// sealed in a folder, and rotates by size. Write never waits for the disk: what the queue cannot take
// is dropped and counted, and a gap record in the file says how many are
// missing. Make one with [OpenFile].
type File struct {
	cfg   FileConfig
	lines sync.Pool // *[]byte

	written, dropped, bytes, rotations, errors atomic.Uint64

	mu      sync.Mutex
	waiting []byte // guarded by mu; lines that wait for the writer
	records int    // guarded by mu; how many those are
	closed  bool   // guarded by mu

	ask  chan deletion // capacity 0
	hand chan handing  // capacity 0
	wake chan struct{} // lines wait, or the file is being closed
	full chan struct{} // a batch of them waits: no more is gathered
	done chan struct{}
	err  error // of the last sync; read after done

	// Owned by the writer goroutine.
	store    store
	gaps     uint64 // drops that a gap record has named
	lastWarn time.Time
}

// A write gathers what comes for gatherFor, or so many bytes. A process that is
// killed loses no more than that.
const (
	gatherFor  = 5 * time.Millisecond
	batchBytes = 128 << 10
)

// OpenFile opens cfg.Path for appending and starts the writer, which
// [File.Close] ends.
func OpenFile(cfg FileConfig) (*File, error) {
	if cfg.Path == "" && cfg.Sealed == nil {
		return nil, errors.New("open audit file: no path")
	}
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 64<<20)
	cfg.Keep = cmp.Or(cfg.Keep, 16)
	cfg.Queue = cmp.Or(cfg.Queue, 16384)
	cfg.Sync = cmp.Or(cfg.Sync, time.Second)
	if cfg.Alerts == nil {
		cfg.Alerts = alert.Discard
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	a := &File{cfg: cfg, ask: make(chan deletion), hand: make(chan handing), wake: make(chan struct{}, 1), full: make(chan struct{}, 1), done: make(chan struct{})}
	a.lines.New = func() any { b := make([]byte, 0, 1024); return &b }
	rotated := func() { a.rotations.Add(1) }
	var err error
	if cfg.Sealed != nil {
		a.store, err = openSealed(*cfg.Sealed, cfg.MaxBytes, cfg.Now, rotated)
	} else {
		p := &plainStore{path: cfg.Path, maxBytes: cfg.MaxBytes, keep: cfg.Keep, now: cfg.Now, rotated: rotated}
		a.store, err = p, p.open()
	}
	if err != nil {
		return nil, fmt.Errorf("open audit file: %w", err)
	}
	go a.run()
	return a, nil
}

// Write implements [Sink]. After Close every record is counted as dropped.
func (a *File) Write(r *Record) {
	if a.cfg.Also != nil {
		a.cfg.Also.Write(r)
	}
	line := a.lines.Get().(*[]byte)
	*line = appendLine((*line)[:0], r)
	a.mu.Lock()
	dropped := a.closed || a.records >= a.cfg.Queue
	if !dropped {
		a.waiting = append(a.waiting, *line...)
		a.records++
	}
	n, size := a.records, len(a.waiting)
	a.mu.Unlock()
	if cap(*line) <= 16<<10 {
		a.lines.Put(line)
	}
	switch {
	case dropped:
		a.dropped.Add(1)
	case n == 1:
		signal(a.wake)
	case size >= batchBytes:
		signal(a.full)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Close writes what waits, syncs and ends the writer. It returns the error of
// the disk that came last, if records were lost by it.
func (a *File) Close() error {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	signal(a.wake)
	signal(a.full)
	<-a.done
	return a.err
}

// deletion asks the writer to delete old segments.
type deletion struct {
	before time.Time
	done   chan int // capacity 1; how many went
}

// Delete removes the sealed segments all of whose records are older than
// before, and returns how many. A record says so.
func (a *File) Delete(before time.Time) (segments int, err error) {
	if a.cfg.Sealed == nil {
		return 0, errors.New("delete audit records: they are lines in a file")
	}
	d := deletion{before, make(chan int, 1)}
	select {
	case a.ask <- d:
		return <-d.done, nil
	case <-a.done:
		return 0, errors.New("delete audit records: the store is closed")
	}
}

// Stats returns the figures.
func (a *File) Stats() FileStats {
	a.mu.Lock()
	queued := a.records
	a.mu.Unlock()
	return FileStats{
		Written: a.written.Load(), Dropped: a.dropped.Load(), Bytes: a.bytes.Load(), Rotations: a.rotations.Load(),
		Errors: a.errors.Load(), Queued: queued,
	}
}

// run is the writer: it gathers what waits, writes it at once, and syncs.
func (a *File) run() {
	defer close(a.done)
	tick := time.NewTicker(a.cfg.Sync)
	defer tick.Stop()
	gathered := time.NewTimer(time.Hour)
	defer gathered.Stop()
	var batch []byte
	for closed := false; !closed; {
		select {
		case <-a.wake:
			gathered.Reset(gatherFor)
			select {
			case <-gathered.C:
			case <-a.full:
			}
			batch, closed = a.take(batch)
			for rest := batch; len(rest) > 0; {
				var lines []byte
				lines, rest = part(rest)
				a.write(lines, count(lines))
			}
		case d := <-a.ask:
			n := 0
			if s, ok := a.store.(*sealedStore); ok { // else it was handed over
				n = s.removeBefore(d.before)
			}
			d.done <- n
		case h := <-a.hand:
			h.done <- a.handOver(h.to)
		case <-tick.C:
			a.writeGap()
			a.upkeep()
		}
	}
	a.writeGap()
	if err := a.store.close(); err != nil {
		a.err = fmt.Errorf("close audit file: %w", err)
		a.errors.Add(1)
	}
}

// count returns how many records lines hold.
func count(lines []byte) int { return bytes.Count(lines, []byte{'\n'}) }

// part cuts whole lines off, of batchBytes together if one is not longer.
func part(lines []byte) (first, rest []byte) {
	if len(lines) <= batchBytes {
		return lines, nil
	}
	end := bytes.LastIndexByte(lines[:batchBytes], '\n') + 1
	if end == 0 {
		end = bytes.IndexByte(lines, '\n') + 1
	}
	return lines[:end], lines[end:]
}

// take returns the lines that wait, and leaves spare in their place.
func (a *File) take(spare []byte) (lines []byte, closed bool) {
	if cap(spare) > 4*batchBytes {
		spare = nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	lines = a.waiting
	a.waiting, a.records = spare[:0], 0
	return lines, a.closed
}

// writeGap writes a gap record when records are missing that none has named.
func (a *File) writeGap() {
	now, dropped := a.cfg.Now(), a.dropped.Load()
	missing := dropped - a.gaps
	if missing == 0 {
		return
	}
	if a.lastWarn.IsZero() || now.Sub(a.lastWarn) >= time.Minute {
		a.lastWarn = now
		a.cfg.Alerts.Raise(alert.Alert{Code: alert.AuditDropped, Time: now, Detail: fmt.Sprintf("%d records", missing)})
	}
	gap := Record{Time: now, Kind: System, Object: "audit gap", Result: "dropped", Detail: fmt.Sprintf("%d records dropped", missing)}
	if a.write(appendLine(nil, &gap), 0) {
		a.gaps = dropped
	}
}

// write writes batch, which holds n records; a gap record counts as none.
// Records that the disk refuses are dropped: waiting would stop everything.
func (a *File) write(batch []byte, n int) (ok bool) {
	if err := a.store.write(batch, n); err != nil {
		a.err = fmt.Errorf("write audit file: %w", err)
		a.errors.Add(1)
		a.dropped.Add(uint64(n))
		return false
	}
	a.written.Add(uint64(n))
	a.bytes.Add(uint64(len(batch)))
	return true
}

// upkeep is what the store does from time to time, and the sync.
func (a *File) upkeep() {
	err := a.store.tick()
	if e := a.store.sync(); e != nil {
		err = e
	}
	if err != nil {
		a.err = fmt.Errorf("sync audit file: %w", err)
		a.errors.Add(1)
	}
}

var _ io.Closer = (*File)(nil)
