package store

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

var (
	bucketKV   = []byte("kv")   // key → created(8) modified(8) value
	bucketLog  = []byte("log")  // revision(8) → the ops of that transaction
	bucketMeta = []byte("meta") // "rev", "compacted" → revision(8)
	keyRev     = []byte("rev")
	keyCompact = []byte("compacted")
)

// BoltConfig is what a [Bolt] needs.
type BoltConfig struct {
	Path   string // file, made with mode 0600; required
	Recent int    // transactions kept in memory for watchers; default 1024
	NoSync bool   // no fsync: for tests only
}

// Bolt is a [Store] in one file.
type Bolt struct {
	db     *bbolt.DB
	keep   int
	writer sync.Mutex // one transaction at a time, from comparison to broadcast

	mu        sync.Mutex
	rev       uint64        // guarded by mu
	compacted uint64        // guarded by mu
	recent    []Batch       // guarded by mu; the newest keep transactions, ascending
	wake      chan struct{} // guarded by mu; closed at each change
	closed    bool          // guarded by mu
}

// OpenBolt opens or makes the store at cfg.Path. A file that another process
// holds is an error after one second.
func OpenBolt(cfg BoltConfig) (*Bolt, error) {
	if cfg.Recent <= 0 {
		cfg.Recent = 1024
	}
	db, err := bbolt.Open(cfg.Path, 0o600, &bbolt.Options{Timeout: time.Second, NoSync: cfg.NoSync, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("open store %s: another control center holds it (stop that one first)", cfg.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", cfg.Path, err)
	}
	b := &Bolt{db: db, keep: cfg.Recent, wake: make(chan struct{})}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketKV, bucketLog, bucketMeta} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		b.rev, b.compacted = number(meta.Get(keyRev)), number(meta.Get(keyCompact))
		return nil
	})
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("open store %s: %w", cfg.Path, err)
	}
	return b, nil
}

// Rev returns the current revision.
func (b *Bolt) Rev() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rev
}

// Get returns the entry of key.
func (b *Bolt) Get(key string) (e Entry, ok bool, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		if raw := tx.Bucket(bucketKV).Get([]byte(key)); raw != nil {
			e, ok = entry(key, raw), true
		}
		return nil
	})
	return e, ok, b.wrap("read "+key, err)
}

// Snapshot returns every entry under prefix.
func (b *Bolt) Snapshot(prefix string) (rev uint64, entries []Entry, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		rev = number(tx.Bucket(bucketMeta).Get(keyRev))
		p := []byte(prefix)
		c := tx.Bucket(bucketKV).Cursor()
		for k, v := c.Seek(p); k != nil && bytes.HasPrefix(k, p); k, v = c.Next() {
			entries = append(entries, entry(string(k), v))
		}
		return nil
	})
	return rev, entries, b.wrap("read store", err)
}

// Txn applies ops at one new revision.
func (b *Bolt) Txn(compares []Compare, ops []Op) (uint64, error) {
	batch := Batch{Ops: make([]Op, len(ops))}
	for i, op := range ops {
		batch.Ops[i] = Op{Key: op.Key, Value: bytes.Clone(op.Value), Delete: op.Delete}
	}
	b.writer.Lock()
	defer b.writer.Unlock()
	run := b.db.Update
	if len(ops) == 0 {
		run = b.db.View
	}
	err := run(func(tx *bbolt.Tx) error {
		kv, log, meta := tx.Bucket(bucketKV), tx.Bucket(bucketLog), tx.Bucket(bucketMeta)
		for _, c := range compares {
			var have uint64
			if raw := kv.Get([]byte(c.Key)); raw != nil {
				have = entry(c.Key, raw).Modified
			}
			if have != c.Modified {
				return &ConflictError{Key: c.Key, Want: c.Modified, Have: have}
			}
		}
		batch.Rev = number(meta.Get(keyRev))
		if len(ops) == 0 {
			return nil
		}
		batch.Rev++
		for _, op := range batch.Ops {
			if err := apply(kv, op, batch.Rev); err != nil {
				return err
			}
		}
		if err := log.Put(encode(batch.Rev), encodeOps(batch.Ops)); err != nil {
			return err
		}
		return meta.Put(keyRev, encode(batch.Rev))
	})
	var conflict *ConflictError
	if errors.As(err, &conflict) {
		return 0, conflict
	}
	if err != nil {
		return 0, b.wrap("write store", err)
	}
	if len(ops) > 0 {
		b.publish(batch)
	}
	return batch.Rev, nil
}

func (b *Bolt) publish(batch Batch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rev = batch.Rev
	if len(b.recent) == b.keep {
		b.recent = slices.Delete(b.recent, 0, max(1, b.keep/4)) // amortised: one move a quarter of the ring
	}
	b.recent = append(b.recent, batch)
	close(b.wake)
	b.wake = make(chan struct{})
}

// Watch returns a watcher of what follows revision from.
func (b *Bolt) Watch(from uint64) (*Watcher, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return nil, ErrClosed
	case from < b.compacted:
		return nil, ErrCompacted
	case from > b.rev:
		return nil, fmt.Errorf("watch store: revision %d is in the future (now %d; the store was restored from a backup: take a snapshot)", from, b.rev)
	}
	return &Watcher{at: from, read: b.after}, nil
}

// after returns the transaction that follows rev, or a channel that closes when
// there may be one.
func (b *Bolt) after(rev uint64) (Batch, <-chan struct{}, error) {
	b.mu.Lock()
	switch {
	case b.closed:
		b.mu.Unlock()
		return Batch{}, nil, ErrClosed
	case rev < b.compacted:
		b.mu.Unlock()
		return Batch{}, nil, ErrCompacted
	case rev >= b.rev:
		wake := b.wake
		b.mu.Unlock()
		return Batch{}, wake, nil
	}
	if len(b.recent) > 0 && b.recent[0].Rev <= rev+1 {
		batch := b.recent[rev+1-b.recent[0].Rev]
		b.mu.Unlock()
		return batch, nil, nil
	}
	b.mu.Unlock()
	batch := Batch{Rev: rev + 1}
	err := b.db.View(func(tx *bbolt.Tx) error {
		raw := tx.Bucket(bucketLog).Get(encode(batch.Rev))
		if raw == nil {
			return ErrCompacted // between the two looks
		}
		var err error
		batch.Ops, err = decodeOps(raw)
		return err
	})
	if errors.Is(err, ErrCompacted) {
		return Batch{}, nil, err
	}
	return batch, nil, b.wrap("read log", err)
}

// Compact forgets the log up to and including rev.
func (b *Bolt) Compact(rev uint64) error {
	b.writer.Lock()
	defer b.writer.Unlock()
	rev = min(rev, b.Rev())
	err := b.db.Update(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if rev <= number(meta.Get(keyCompact)) {
			return nil
		}
		c := tx.Bucket(bucketLog).Cursor()
		for k, _ := c.First(); k != nil && number(k) <= rev; k, _ = c.First() {
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return meta.Put(keyCompact, encode(rev))
	})
	if err != nil {
		return b.wrap("compact store", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.compacted = max(b.compacted, rev)
	b.recent = slices.DeleteFunc(b.recent, func(t Batch) bool { return t.Rev <= rev })
	close(b.wake) // watchers that stand before rev learn it at once
	b.wake = make(chan struct{})
	return nil
}

// Close ends the watchers and closes the file.
func (b *Bolt) Close() error {
	b.writer.Lock()
	defer b.writer.Unlock()
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	close(b.wake)
	b.mu.Unlock()
	return b.db.Close()
}

func (b *Bolt) wrap(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return ErrClosed
	}
	return fmt.Errorf("%s: %w", what, err)
}
