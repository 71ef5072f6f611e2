// Package store is the control center's memory: a small revisioned key-value
// store with compare-and-swap transactions and a watch from any revision that
// is still in its log. Every transaction that writes makes one new revision;
// watchers see whole transactions, in order, without gaps.
//
// [Store] is the interface, [Bolt] the driver for one control center; a driver
// over an external cluster fits behind the same interface. Start at [OpenBolt].
package store

import (
	"context"
	"errors"
	"fmt"
)

// ErrCompacted says that the log no longer holds the revision asked for: take a
// [Store.Snapshot] and watch from its revision.
var ErrCompacted = errors.New("store: revision compacted")

// ErrClosed says that the store is closed.
var ErrClosed = errors.New("store: closed")

// ConflictError says which comparison of a transaction did not hold. Nothing of
// the transaction was written.
type ConflictError struct {
	Key  string
	Want uint64 // revision that the caller expected, 0: absent
	Have uint64 // revision found, 0: absent
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("write %s: it changed meanwhile (revision %d, expected %d; read it again and retry)", e.Key, e.Have, e.Want)
}

// Entry is one key with its value and revisions.
type Entry struct {
	Key      string
	Value    []byte
	Created  uint64 // revision that made the key
	Modified uint64 // revision of the last change
}

// Compare holds when Key was last modified at Modified; 0 demands that the key
// does not exist.
type Compare struct {
	Key      string
	Modified uint64
}

// Op writes Value at Key, or deletes Key. Deleting an absent key is no error.
type Op struct {
	Key    string
	Value  []byte
	Delete bool
}

// Put returns the operation that writes value at key.
func Put(key string, value []byte) Op { return Op{Key: key, Value: value} }

// Delete returns the operation that removes key.
func Delete(key string) Op { return Op{Key: key, Delete: true} }

// Batch is what one transaction wrote.
type Batch struct {
	Rev uint64
	Ops []Op // immutable
}

// Store is a revisioned key-value store. Implementations are safe for
// concurrent use.
type Store interface {
	// Get returns the entry of key; ok is false when there is none.
	Get(key string) (e Entry, ok bool, err error)
	// Snapshot returns every entry whose key starts with prefix, in the order
	// of the keys, and the revision at which they were read.
	Snapshot(prefix string) (rev uint64, entries []Entry, err error)
	// Txn applies ops at one new revision if every comparison holds, and
	// returns that revision after it is durable. A failed comparison is a
	// [*ConflictError]. Without ops it returns the current revision.
	Txn(compares []Compare, ops []Op) (rev uint64, err error)
	// Watch returns a watcher of the transactions after revision from. It
	// returns [ErrCompacted] if the log does not reach back that far.
	Watch(from uint64) (*Watcher, error)
	// Rev returns the current revision.
	Rev() uint64
	// Compact forgets the log up to and including rev. The entries stay.
	Compact(rev uint64) error
	// Close ends every watcher with [ErrClosed].
	Close() error
}

// Watcher reads the transactions of a store one after the other. It holds no
// queue: a slow watcher costs the writer nothing, and one that falls behind the
// log learns [ErrCompacted]. A Watcher is for one goroutine.
type Watcher struct {
	at   uint64
	read func(after uint64) (b Batch, wake <-chan struct{}, err error)
}

// Next returns the next transaction, waiting for it until ctx ends.
func (w *Watcher) Next(ctx context.Context) (Batch, error) {
	for {
		b, wake, err := w.read(w.at)
		if err != nil {
			return Batch{}, err
		}
		if wake == nil {
			w.at = b.Rev
			return b, nil
		}
		select {
		case <-ctx.Done():
			return Batch{}, ctx.Err()
		case <-wake:
		}
	}
}
