package ctlclient

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/sm4gcm"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/spool"
)

// DurableConfig is what a [Durable] needs. The zero value of an optional field
// selects its default.
type DurableConfig struct {
	Dir     string                 // its own folder; required
	Key     func() ([]byte, error) // the state key, asked for by Open; required; see [OutboxKey]
	Caps    [NumClasses]int64      // bytes on disk, a class; default 64 MiB, 256 MiB, 1 GiB, 8 MiB
	Reserve int64                  // bytes kept for alerts and identity on a full disk; default 16 MiB, negative for none

	SegmentBytes int64 // of one file; default 8 MiB, at most an eighth of the class's cap

	Alerts alert.Sink       // told of damage; default: those of the link that it serves, or none
	Logger *zap.Logger      // default: none
	Now    func() time.Time // default time.Now
}

// Durable is an [Outbox] on disk: what Append has taken of alerts, identity and
// status reports survives a power cut, sealed with SM4-GCM. See package spool.
//
// Until Open, and if Open fails, it is a [Memory]: a gateway that can not write
// keeps its link. Differences from Memory: the bounds are bytes on disk, and a
// whole segment goes at a time; Stats.Bytes are bytes on disk; Ack passes over
// numbers that Next has not shown yet; gap records are counted, logged and
// acknowledged by Next itself.
type Durable struct {
	cfg DurableConfig

	mu     sync.RWMutex
	memory *Memory      // guarded by mu; nil while the spool is open
	spool  *spool.Spool // guarded by mu
	closed bool         // guarded by mu
	acks   *evidence    // set once, by Open, before spool
}

// ErrOutboxClosed is returned after Close.
var ErrOutboxClosed = errors.New("append to outbox: closed")

// NewDurable returns an outbox that is in memory until Open.
func NewDurable(cfg DurableConfig) *Durable {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Durable{cfg: cfg, memory: NewMemory(MemoryConfig{Now: cfg.Now})}
}

// OutboxKey returns a function that derives the state key of an outbox from the
// private key [keystore.State] of a key store, which it makes when there is none. So
// the outbox is as safe as the other keys, and certificates may be renewed.
func OutboxKey(keys *keystore.Store) func() ([]byte, error) {
	const name = keystore.State
	return func() ([]byte, error) {
		if err := keys.Generate(name, keystore.P256); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		signer, err := keys.Signer(name)
		if err != nil {
			return nil, err
		}
		key, ok := signer.(*ecdsa.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("derive outbox key: %s.key is of another kind (remove it)", name)
		}
		raw, err := key.Bytes()
		if err != nil {
			return nil, fmt.Errorf("derive outbox key: %w", err)
		}
		sum := sm3.Sum(append([]byte("yumen outbox v1\n"), raw...))
		return sum[:], nil
	}
}

// Open opens the folder and moves what came before into it. After an error the
// outbox stays in memory.
func (d *Durable) Open() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.spool != nil || d.closed {
		return nil
	}
	key, err := d.cfg.Key()
	if err != nil {
		return fmt.Errorf("open outbox: %w", err)
	}
	cfg := spool.Config{Dir: d.cfg.Dir, Key: key, Seal: sm4gcm.New, Reserve: d.cfg.Reserve, SegmentBytes: d.cfg.SegmentBytes, Event: d.event, Now: d.cfg.Now}
	for c := range NumClasses {
		cfg.Caps[classOf(c)] = d.cfg.Caps[c]
	}
	s, err := spool.Open(cfg)
	if err != nil {
		return fmt.Errorf("open outbox: %w", err)
	}
	if d.acks, err = openEvidence(d.cfg.Dir, func(c Class, upTo uint64) { _ = s.AckTo(classOf(c), upTo) }); err != nil {
		s.Close()
		return fmt.Errorf("open outbox: %w", err)
	}
	for c := range NumClasses {
		for _, e := range d.memory.all(c) {
			if _, err := s.Append(context.Background(), classOf(c), e.Payload); err != nil {
				d.cfg.Logger.Error("report not moved to disk", zap.Stringer("class", c), zap.Error(err))
			}
		}
	}
	d.spool, d.memory = s, nil
	return nil
}

// Close saves what is to be saved and gives the folder free. A second call does
// nothing.
func (d *Durable) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.spool == nil {
		return nil
	}
	return errors.Join(d.acks.save(), d.spool.Close())
}

// classOf returns the spool's name of a class.
func classOf(c Class) spool.Class {
	switch c {
	case ClassAlert:
		return spool.Alert
	case ClassIdentity:
		return spool.Identity
	case ClassAudit:
		return spool.Audit
	case ClassStatus:
		return spool.Status
	}
	return spool.NumClasses
}

// now returns where records are kept; one of the two is nil.
func (d *Durable) now() (*Memory, *spool.Spool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.memory, d.spool
}

// Append implements [Outbox].
func (d *Durable) Append(ctx context.Context, c Class, payload []byte) (uint64, error) {
	d.mu.RLock() // Open must not move the memory's records meanwhile
	m, s, closed := d.memory, d.spool, d.closed
	if m != nil && !closed {
		defer d.mu.RUnlock()
		return m.Append(ctx, c, payload)
	}
	d.mu.RUnlock()
	if closed {
		return 0, ErrOutboxClosed
	}
	seq, err := s.Append(ctx, classOf(c), payload)
	switch {
	case errors.Is(err, spool.ErrTooLarge), errors.Is(err, spool.ErrNoSpace):
		return 0, fmt.Errorf("%w: %w", ErrOutboxFull, err)
	case errors.Is(err, spool.ErrClosed):
		return 0, ErrOutboxClosed
	}
	return seq, err
}

// Next implements [Outbox].
func (d *Durable) Next(c Class, after uint64, n int) ([]Entry, error) {
	m, s := d.now()
	if m != nil {
		return m.Next(c, after, n)
	}
	if c >= NumClasses {
		return nil, nil
	}
	var out []Entry
	for len(out) < n {
		got, err := s.Next(classOf(c), after, n-len(out))
		if err != nil || len(got) == 0 {
			return out, err
		}
		for _, r := range got {
			after = r.Seq
			if r.Gaps == nil {
				out = append(out, Entry{Seq: r.Seq, Class: c, At: r.At, Payload: r.Payload})
				continue
			}
			for _, g := range r.Gaps {
				d.cfg.Logger.Warn("reports lost", zap.Stringer("class", c), zap.Uint64("from", g.From), zap.Uint64("to", g.To),
					zap.Uint64("count", g.Count), zap.Stringer("reason", g.Reason), zap.Time("at", g.At))
			}
			if err := s.Ack(classOf(c), r.Seq); err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

// Ack implements [Outbox].
func (d *Durable) Ack(c Class, seqs ...uint64) error {
	m, s := d.now()
	if m != nil {
		return m.Ack(c, seqs...)
	}
	if c >= NumClasses {
		return nil
	}
	return s.Ack(classOf(c), seqs...)
}

// Stats implements [Outbox].
func (d *Durable) Stats() (out [NumClasses]ClassStats) {
	m, s := d.now()
	if m != nil {
		return m.Stats()
	}
	all := s.Stats()
	for c := range NumClasses {
		st := all.Class[classOf(c)]
		out[c] = ClassStats{
			Pending: st.Pending, Bytes: st.Bytes, Appended: st.Appended, Acked: st.Acked, Dropped: st.Dropped,
			// The newest that Next gives: one that has its number and is on its way to
			// the disk would belong neither to what waited nor to what comes.
			LastSeq: s.Last(classOf(c)), Oldest: st.Oldest,
		}
	}
	return out
}

// spoolAlerts are the events of a spool that a person should know of, in words;
// a torn tail is what a crash leaves, and drops are counted for 2.007.
var spoolAlerts = map[spool.EventKind]alert.Code{
	spool.Corruption: alert.StateAltered,
	spool.DiskFull:   alert.DiskFull,
	spool.SpaceBack:  alert.DiskBack,
	spool.DiskFault:  alert.DiskFault,
	spool.Filling:    alert.OutboxFilling,
}

// event logs what the spool has to say, and raises what is an alert. It is for
// the sink to damp what comes often.
func (d *Durable) event(e spool.Event) {
	d.cfg.Logger.Warn("outbox event", zap.Stringer("kind", e.Kind), zap.Stringer("class", e.Class), zap.Uint64("count", e.Count),
		zap.Stringer("reason", e.Reason), zap.String("file", e.File), zap.Error(e.Err))
	code, ok := spoolAlerts[e.Kind]
	if !ok || d.cfg.Alerts == nil {
		return
	}
	detail := "outbox"
	if e.Kind != spool.SpaceBack {
		detail += ", " + e.Class.String()
	}
	switch {
	case e.File != "":
		detail += ": " + e.File
	case e.Err != nil:
		detail += ": " + audit.Clean(e.Err.Error(), 300)
	}
	d.cfg.Alerts.Raise(alert.Alert{Code: code, Detail: detail})
}
