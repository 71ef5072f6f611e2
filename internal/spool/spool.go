package spool

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"
)

// Errors that callers tell apart.
var (
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("spool: closed")
	// ErrTooLarge is returned for a record beyond [Config.MaxRecord].
	ErrTooLarge = errors.New("append record: it is larger than the spool takes")
	// ErrNoSpace is returned while the disk is full. The record is lost, and
	// counted in a gap.
	ErrNoSpace = errors.New("append record: no space on disk (free some, or lower the caps)")
)

// Config is what a [Spool] needs. The zero value of an optional field selects
// its default.
type Config struct {
	Dir  string                                // made if it is not there, mode 0700; required
	Key  []byte                                // state key, 16 bytes or more; required
	Seal func(key []byte) (cipher.AEAD, error) // SM4-GCM of a 16-byte key; required

	Caps         [NumClasses]int64 // bytes on disk, a class; default 64 MiB, 256 MiB, 1 GiB, 8 MiB
	MaxBytes     int64             // bytes on disk, all classes; default the sum of Caps
	SegmentBytes int64             // of a segment; default 8 MiB, and at most an eighth of the class's cap
	MaxRecord    int               // bytes of a payload; default 1 MiB
	Reserve      int64             // bytes kept for alerts and identity on a full disk; default 16 MiB, negative for none
	Window       time.Duration     // after which audit records are synced; default 50 ms
	WindowBytes  int               // or so many bytes; default 1 MiB
	SaveEvery    time.Duration     // delay after which settled numbers are saved; default 500 ms
	Event        func(Event)       // called by the spool's goroutines and Open; must not block or call the spool; default: none
	Now          func() time.Time  // default time.Now

	fs fsys // tests set their own
}

func (c *Config) setDefaults() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("open spool: no folder"))
	}
	if len(c.Key) < keySize {
		errs = append(errs, fmt.Errorf("open spool: the key has %d bytes, at least %d are needed", len(c.Key), keySize))
	}
	if c.Seal == nil {
		errs = append(errs, errors.New("open spool: no cipher"))
	}
	sum := int64(0)
	for i, mib := range [NumClasses]int64{64, 256, 1024, 8} {
		if c.Caps[i] <= 0 {
			c.Caps[i] = mib << 20
		}
		sum += c.Caps[i]
	}
	if c.MaxBytes <= 0 {
		c.MaxBytes = sum
	}
	if c.SegmentBytes <= 0 {
		c.SegmentBytes = 8 << 20
	}
	if c.MaxRecord <= 0 {
		c.MaxRecord = 1 << 20
	}
	switch {
	case c.Reserve == 0:
		c.Reserve = 16 << 20
	case c.Reserve < 0:
		c.Reserve = 0
	}
	if c.Window <= 0 {
		c.Window = 50 * time.Millisecond
	}
	if c.WindowBytes <= 0 {
		c.WindowBytes = 1 << 20
	}
	if c.SaveEvery <= 0 {
		c.SaveEvery = 500 * time.Millisecond
	}
	if c.Event == nil {
		c.Event = func(Event) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.fs == nil {
		c.fs = osFS{}
	}
	return errors.Join(errs...)
}

// Spool is an open folder. Its methods may be called from any goroutine.
type Spool struct {
	cfg  Config
	keys keys
	lock io.Closer
	logs [NumClasses]*log

	closing chan struct{} // closed by Close
	poke    chan struct{} // capacity 1; something for the keeper
	once    sync.Once
	wg      sync.WaitGroup // committers and syncers
	keeping sync.WaitGroup // the keeper

	mu       sync.Mutex // taken before any log's, never after
	tight    bool       // guarded by mu
	reserved bool       // guarded by mu: the reserve is in place
	torn     int        // guarded by mu
	damaged  int        // guarded by mu
	failed   int        // guarded by mu
}

// Open opens the folder, checks every segment and starts. It fails when another
// process has the folder, or when it can not be made; never for what is in it.
func Open(cfg Config) (*Spool, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	if err := cfg.fs.MkdirAll(cfg.Dir); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	lock, err := cfg.fs.Lock(filepath.Join(cfg.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("open spool: %s is in use by another process: %w", cfg.Dir, err)
	}
	s := &Spool{
		cfg: cfg, lock: lock, closing: make(chan struct{}), poke: make(chan struct{}, 1),
		keys: keys{state: append([]byte(nil), cfg.Key...), seal: cfg.Seal},
	}
	for c := range NumClasses {
		s.logs[c] = newLog(s, c)
		if err := s.logs[c].load(); err != nil {
			lock.Close()
			return nil, fmt.Errorf("open spool: %s: %w", c, err)
		}
	}
	s.takeReserve()
	for _, l := range s.logs {
		s.wg.Go(l.commitLoop)
		if l.class.lazy() {
			s.wg.Go(l.syncLoop)
		}
		signal(l.wake)
	}
	s.keeping.Go(s.keep)
	signal(s.poke)
	return s, nil
}

// signal wakes the one that waits for ch, now or later.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (s *Spool) log(c Class) (*log, error) {
	if c >= NumClasses {
		return nil, fmt.Errorf("spool: no class %d", c)
	}
	return s.logs[c], nil
}

// Append stores payload, which it copies, and returns its sequence number. See
// the package doc for what "stored" means for each class. With any error but
// ctx's the record is not stored; with ctx's it may be.
func (s *Spool) Append(ctx context.Context, c Class, payload []byte) (seq uint64, err error) {
	l, err := s.log(c)
	if err != nil {
		return 0, err
	}
	return l.append(ctx, payload)
}

// Next returns up to n records of the class that wait, with Seq > after, oldest
// first, and at most [Config.MaxRecord] bytes of payloads beyond the first.
func (s *Spool) Next(c Class, after uint64, n int) ([]Record, error) {
	l, err := s.log(c)
	if err != nil {
		return nil, err
	}
	return l.nextRecords(after, n)
}

// Ack forgets the records named. Numbers that Next did not give, or that are
// settled already, are passed over.
func (s *Spool) Ack(c Class, seqs ...uint64) error {
	l, err := s.log(c)
	if err != nil {
		return err
	}
	if l.ack(seqs) {
		signal(s.poke)
	}
	return nil
}

// Stats returns the figures.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	out := Stats{Torn: s.torn, Damaged: s.damaged, Failed: s.failed, Tight: s.tight, Reserve: s.reserved}
	s.mu.Unlock()
	for c, l := range s.logs {
		out.Class[c] = l.statistics()
	}
	return out
}

// Close stores what is being appended, ends the segments, saves what is settled
// and gives the folder free. A second call does nothing.
func (s *Spool) Close() error {
	err := ErrClosed
	s.once.Do(func() {
		for _, l := range s.logs {
			l.refuseNew()
		}
		close(s.closing)
		s.wg.Wait()
		s.keeping.Wait()
		err = nil
		for _, l := range s.logs {
			err = errors.Join(err, l.save())
			l.sweep()
		}
		err = errors.Join(err, s.lock.Close())
	})
	if errors.Is(err, ErrClosed) {
		return nil
	}
	return err
}

// fault counts a failed write or sync.
func (s *Spool) fault(c Class, err error) {
	full := noSpace(err)
	s.mu.Lock()
	s.failed++
	s.mu.Unlock()
	if !full {
		s.cfg.Event(Event{Kind: DiskFault, Class: c, Err: err})
	}
}

func (s *Spool) corrupt(c Class, file string) {
	s.mu.Lock()
	s.damaged++
	s.mu.Unlock()
	s.cfg.Event(Event{Kind: Corruption, Class: c, File: filepath.Base(file)})
}
