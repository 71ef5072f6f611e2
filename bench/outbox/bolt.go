package main

import (
	"crypto/cipher"
	"encoding/binary"
	"path/filepath"
	"sync"

	bolt "go.etcd.io/bbolt"

	"github.com/yumen-zt/yumen/crypto/sm4gcm"
)

// boltEngine is bbolt with a group commit of our own: whoever comes during a
// transaction is in the next one. (DB.Batch waits 10 ms for company by default,
// which is worse.)
type boltEngine struct {
	db   *bolt.DB
	aead cipher.AEAD // nil: plain
	next uint64      // the committer's

	mu   sync.Mutex
	open *boltBatch // guarded by mu
	wake chan struct{}
	done chan struct{}
}

type boltBatch struct {
	payloads [][]byte
	done     chan struct{}
	err      error
}

var bucket = []byte("records")

func openBolt(dir string, sealed bool) (engine, error) {
	db, err := bolt.Open(filepath.Join(dir, "bolt"), 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, NoFreelistSync: true})
	if err != nil {
		return nil, err
	}
	if err := db.Update(func(tx *bolt.Tx) error { _, err := tx.CreateBucket(bucket); return err }); err != nil {
		return nil, err
	}
	e := &boltEngine{db: db, wake: make(chan struct{}, 1), done: make(chan struct{})}
	if sealed {
		if e.aead, err = sm4gcm.New(make([]byte, 16)); err != nil {
			return nil, err
		}
	}
	go e.commit()
	return e, nil
}

func (e *boltEngine) append(payload []byte) error {
	e.mu.Lock()
	if e.open == nil {
		e.open = &boltBatch{done: make(chan struct{})}
		select {
		case e.wake <- struct{}{}:
		default:
		}
	}
	b := e.open
	b.payloads = append(b.payloads, append([]byte(nil), payload...))
	e.mu.Unlock()
	<-b.done
	return b.err
}

func (e *boltEngine) commit() {
	defer close(e.done)
	for range e.wake {
		e.mu.Lock()
		b := e.open
		e.open = nil
		e.mu.Unlock()
		if b == nil {
			continue
		}
		b.err = e.db.Update(func(tx *bolt.Tx) error {
			k := tx.Bucket(bucket)
			k.FillPercent = 0.95 // keys only grow
			for _, p := range b.payloads {
				e.next++
				key := binary.BigEndian.AppendUint64(nil, e.next)
				if e.aead != nil {
					p = e.aead.Seal(nil, append(make([]byte, 4), key...), p, key)
				}
				if err := k.Put(key, p); err != nil {
					return err
				}
			}
			return nil
		})
		close(b.done)
	}
}

func (e *boltEngine) close() error {
	close(e.wake)
	<-e.done
	return e.db.Close()
}
