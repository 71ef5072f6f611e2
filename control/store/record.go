package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"
)

var errRecord = errors.New("a record of the log cannot be read (restore the file from a backup)")

func encode(rev uint64) []byte { return binary.BigEndian.AppendUint64(nil, rev) }

func number(raw []byte) uint64 {
	if len(raw) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(raw)
}

// entry reads a value of the kv bucket; it copies.
func entry(key string, raw []byte) Entry {
	if len(raw) < 16 {
		return Entry{Key: key}
	}
	return Entry{Key: key, Created: number(raw[:8]), Modified: number(raw[8:16]), Value: bytes.Clone(raw[16:])}
}

func apply(kv *bbolt.Bucket, op Op, rev uint64) error {
	if op.Key == "" {
		return errors.New("a key is empty")
	}
	if op.Delete {
		return kv.Delete([]byte(op.Key))
	}
	created := rev
	if raw := kv.Get([]byte(op.Key)); raw != nil {
		created = entry(op.Key, raw).Created
	}
	raw := make([]byte, 0, 16+len(op.Value))
	raw = binary.BigEndian.AppendUint64(raw, created)
	raw = binary.BigEndian.AppendUint64(raw, rev)
	return kv.Put([]byte(op.Key), append(raw, op.Value...))
}

// encodeOps writes each op as: kind (0 put, 1 delete), key length, key, value
// length, value; lengths are unsigned varints.
func encodeOps(ops []Op) []byte {
	var raw []byte
	for _, op := range ops {
		kind := byte(0)
		if op.Delete {
			kind = 1
		}
		raw = append(raw, kind)
		raw = binary.AppendUvarint(raw, uint64(len(op.Key)))
		raw = append(raw, op.Key...)
		raw = binary.AppendUvarint(raw, uint64(len(op.Value)))
		raw = append(raw, op.Value...)
	}
	return raw
}

func decodeOps(raw []byte) ([]Op, error) {
	var ops []Op
	field := func() ([]byte, bool) {
		n, w := binary.Uvarint(raw)
		if w <= 0 || n > uint64(len(raw)-w) {
			return nil, false
		}
		f := raw[w : w+int(n)]
		raw = raw[w+int(n):]
		return f, true
	}
	for len(raw) > 0 {
		kind := raw[0]
		raw = raw[1:]
		key, ok := field()
		if !ok || kind > 1 {
			return nil, fmt.Errorf("read log: %w", errRecord)
		}
		value, ok := field()
		if !ok {
			return nil, fmt.Errorf("read log: %w", errRecord)
		}
		ops = append(ops, Op{Key: string(key), Value: bytes.Clone(value), Delete: kind == 1})
	}
	return ops, nil
}
