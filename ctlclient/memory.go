package ctlclient

import (
	"bytes"
	"context"
	"sync"
	"time"
)

// MemoryConfig bounds a [Memory] outbox. The zero value of a field selects its
// default.
type MemoryConfig struct {
	Records [NumClasses]int   // at most, a class; default 4096
	Bytes   [NumClasses]int64 // at most, a class; default 8 MiB
	Now     func() time.Time  // default time.Now
}

// Memory is an [Outbox] that lasts as long as the process. Each class has its
// own bounds; when one is reached, the oldest records of that class go and are
// counted.
type Memory struct {
	cfg MemoryConfig

	mu sync.Mutex
	q  [NumClasses]queue // guarded by mu
}

type queue struct {
	entries []Entry // oldest first
	stats   ClassStats
}

// NewMemory returns an empty outbox.
func NewMemory(cfg MemoryConfig) *Memory {
	for c := range NumClasses {
		if cfg.Records[c] <= 0 {
			cfg.Records[c] = 4096
		}
		if cfg.Bytes[c] <= 0 {
			cfg.Bytes[c] = 8 << 20
		}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Memory{cfg: cfg}
}

// Append implements [Outbox].
func (m *Memory) Append(_ context.Context, c Class, payload []byte) (uint64, error) {
	if c >= NumClasses || int64(len(payload)) > m.cfg.Bytes[c] {
		return 0, ErrOutboxFull
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	q := &m.q[c]
	q.stats.LastSeq++
	q.stats.Appended++
	q.stats.Bytes += int64(len(payload))
	q.entries = append(q.entries, Entry{Seq: q.stats.LastSeq, Class: c, At: m.cfg.Now(), Payload: bytes.Clone(payload)})
	for len(q.entries) > m.cfg.Records[c] || q.stats.Bytes > m.cfg.Bytes[c] {
		q.stats.Dropped++
		q.remove(0)
	}
	return q.stats.LastSeq, nil
}

// remove takes out the record at i. The rest is moved rarely: mostly the front
// goes, and the array behind is left to the next append's growth.
func (q *queue) remove(i int) {
	q.stats.Bytes -= int64(len(q.entries[i].Payload))
	q.entries[i] = Entry{}
	if i == 0 {
		q.entries = q.entries[1:]
		return
	}
	q.entries = append(q.entries[:i], q.entries[i+1:]...)
}

// Next implements [Outbox].
func (m *Memory) Next(c Class, after uint64, n int) ([]Entry, error) {
	if c >= NumClasses {
		return nil, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	entries := m.q[c].entries
	from := m.q[c].find(after + 1)
	return append([]Entry(nil), entries[from:min(from+n, len(entries))]...), nil
}

// all returns every record of the class.
func (m *Memory) all(c Class) []Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Entry(nil), m.q[c].entries...)
}

// find returns the index of the first record with Seq >= seq.
func (q *queue) find(seq uint64) int {
	lo, hi := 0, len(q.entries)
	for lo < hi {
		mid := (lo + hi) / 2
		if q.entries[mid].Seq < seq {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// Ack implements [Outbox].
func (m *Memory) Ack(c Class, seqs ...uint64) error {
	if c >= NumClasses {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	q := &m.q[c]
	for _, s := range seqs {
		if i := q.find(s); i < len(q.entries) && q.entries[i].Seq == s {
			q.remove(i)
			q.stats.Acked++
		}
	}
	return nil
}

// Stats implements [Outbox].
func (m *Memory) Stats() [NumClasses]ClassStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out [NumClasses]ClassStats
	for c := range m.q {
		out[c] = m.q[c].stats
		out[c].Pending = len(m.q[c].entries)
		if len(m.q[c].entries) > 0 {
			out[c].Oldest = m.q[c].entries[0].At
		}
	}
	return out
}
