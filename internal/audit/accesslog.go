package audit

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Access is one HTTP request in the access log. The audit says who was let in or
// not, and is kept; the access log says how applications answered, and may be
// thrown away. It has no query: that may hold secrets.
type Access struct {
	Time      time.Time // when the request came
	RequestID string
	AppID     string
	UserID    string
	Remote    string
	Method    string
	Host      string
	Path      string
	Carrier   string // h1, h2, h3, sse, websocket
	Status    int    // 0: no answer was begun
	Code      reason.Reason
	BytesIn   int64
	BytesOut  int64
	Duration  time.Duration
	UserAgent string
}

// AccessLogConfig is what an [AccessLog] needs. The zero value of an optional
// field selects its default.
type AccessLogConfig struct {
	File     string `yaml:"file"`      // lines of JSON, mode 0600; without it there is no access log
	Sample   int    `yaml:"sample"`    // 1 of so many requests that went well is written, refusals and 5xx always; default 1: all
	MaxBytes int64  `yaml:"max_bytes"` // of the file, before it is set aside; default 64 MiB
	Keep     int    `yaml:"keep"`      // files set aside that are kept; default 4
}

// Validate names the faults of c by their path.
func (c *AccessLogConfig) Validate() error {
	if c.Sample < 0 || c.MaxBytes < 0 || c.Keep < 0 {
		return errors.New("access_log: sample, max_bytes and keep are not negative")
	}
	return nil
}

// AccessLog writes requests to a file, some at a time. Write never waits: what
// has no room is dropped and counted. Its methods are safe for concurrent use.
type AccessLog struct {
	sample           uint64
	seen             atomic.Uint64
	written, dropped atomic.Uint64
	reopen           atomic.Bool

	mu      sync.Mutex
	waiting []byte // guarded by mu
	closed  bool   // guarded by mu

	wake  chan struct{}
	done  chan struct{}
	store *plainStore // the writer's
}

const (
	accessEvery = 200 * time.Millisecond
	accessBatch = 256 << 10 // is written at once
	accessRoom  = 8 << 20   // may wait for the disk
)

// OpenAccessLog opens the file and starts the writer, which Close ends.
func OpenAccessLog(c AccessLogConfig, now func() time.Time) (*AccessLog, error) {
	l := &AccessLog{sample: uint64(cmp.Or(c.Sample, 1)), wake: make(chan struct{}, 1), done: make(chan struct{})}
	l.store = &plainStore{path: c.File, maxBytes: cmp.Or(c.MaxBytes, 64<<20), keep: cmp.Or(c.Keep, 4), now: now, rotated: func() {}}
	if err := l.store.open(); err != nil {
		return nil, fmt.Errorf("open access log: %w (see access_log.file)", err)
	}
	go l.run()
	return l, nil
}

// Write adds a request to the log, unless it is one that sampling leaves out.
func (l *AccessLog) Write(r *Access) {
	if l.sample > 1 && r.Code == reason.OK && r.Status < 500 && l.seen.Add(1)%l.sample != 0 {
		return
	}
	l.mu.Lock()
	if l.closed || len(l.waiting) > accessRoom {
		l.mu.Unlock()
		l.dropped.Add(1)
		return
	}
	l.waiting = appendAccess(l.waiting, r)
	n := len(l.waiting)
	l.mu.Unlock()
	if n >= accessBatch {
		signal(l.wake)
	}
}

func appendAccess(b []byte, r *Access) []byte {
	b = append(b, `{"time":"`...)
	b = appendTime(b, r.Time)
	b = append(b, `","request_id":`...)
	b = appendText(b, r.RequestID)
	b = appendField(b, "app_id", r.AppID)
	b = appendField(b, "user_id", r.UserID)
	b = append(b, `,"remote_addr":`...)
	b = appendText(b, r.Remote)
	b = appendField(b, "method", r.Method)
	b = appendField(b, "host", r.Host)
	b = appendField(b, "path", r.Path)
	b = appendField(b, "carrier", r.Carrier)
	b = append(b, `,"status":`...)
	b = strconv.AppendInt(b, int64(r.Status), 10)
	if r.Code != reason.OK {
		b = appendField(b, "reason", r.Code.String())
	}
	b = appendNumber(b, "bytes_in", r.BytesIn)
	b = appendNumber(b, "bytes_out", r.BytesOut)
	b = appendNumber(b, "duration_us", r.Duration.Microseconds())
	b = appendField(b, "user_agent", r.UserAgent)
	return append(b, "}\n"...)
}

// Reopen makes the writer open the file anew: somebody may have moved it.
func (l *AccessLog) Reopen() { l.reopen.Store(true) }

// Stats returns how many requests were written, and how many had no room or met
// a disk that took nothing.
func (l *AccessLog) Stats() (written, dropped uint64) { return l.written.Load(), l.dropped.Load() }

// Close writes what waits and ends the writer.
func (l *AccessLog) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	signal(l.wake)
	<-l.done
	return l.store.close()
}

func (l *AccessLog) run() {
	defer close(l.done)
	tick := time.NewTicker(accessEvery)
	defer tick.Stop()
	var spare []byte
	for {
		select {
		case <-tick.C:
		case <-l.wake:
		}
		if l.reopen.CompareAndSwap(true, false) {
			if l.store.f != nil {
				l.store.f.Close()
				l.store.f = nil // the next write opens it
			}
		}
		l.mu.Lock()
		lines, closed := l.waiting, l.closed
		l.waiting = spare[:0]
		l.mu.Unlock()
		if n := uint64(bytes.Count(lines, []byte{'\n'})); n > 0 {
			if l.store.write(lines, 0) != nil {
				l.dropped.Add(n)
			} else {
				l.written.Add(n)
			}
		}
		if spare = lines; cap(spare) > 4*accessBatch {
			spare = nil
		}
		if closed {
			return
		}
	}
}
