package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/internal/audit"
)

// auditFile writes audit records as JSON lines (§6.4), mode 0600. A file that
// passes maxAuditBytes is set aside under a name with the time; nothing is ever
// deleted here.
type auditFile struct {
	path    string
	log     *zap.Logger
	queue   chan []byte
	dropped atomic.Uint64
	feed    *feed
}

const (
	auditQueue    = 4096
	maxAuditBytes = 64 << 20
	maxAuditText  = 512 // characters of a string that a peer may have chosen
)

func newAuditFile(path string, log *zap.Logger, f *feed) *auditFile {
	return &auditFile{path: path, log: log, queue: make(chan []byte, auditQueue), feed: f}
}

// Write takes a record. It never blocks; what does not fit is counted.
func (a *auditFile) Write(r *audit.Record) {
	c := *r
	for _, s := range []*string{&c.Object, &c.Detail, &c.Path, &c.UserID, &c.DeviceID, &c.AgentID, &c.GatewayID} {
		if t := []rune(*s); len(t) > maxAuditText {
			*s = string(t[:maxAuditText])
		}
	}
	line, err := json.Marshal(&c)
	if err != nil {
		a.dropped.Add(1)
		return
	}
	a.feed.send("audit", line)
	select {
	case a.queue <- append(line, '\n'):
	default:
		a.dropped.Add(1)
	}
}

// run writes until ctx ends and the queue is empty.
func (a *auditFile) run(ctx context.Context) error {
	f, size, err := openAppend(a.path)
	if err != nil {
		return fmt.Errorf("open audit file: %w", err)
	}
	w := bufio.NewWriter(f)
	defer func() {
		w.Flush()
		f.Sync()
		f.Close()
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	write := func(line []byte) {
		n, err := w.Write(line)
		if err != nil {
			a.dropped.Add(1)
			a.log.Error("audit record lost", zap.Error(err))
			w.Reset(f)
		}
		size += int64(n)
	}
	for {
		select {
		case line := <-a.queue:
			write(line)
		case <-tick.C:
			if w.Buffered() == 0 {
				break
			}
			if err := errors.Join(w.Flush(), f.Sync()); err != nil {
				a.log.Error("audit file not written", zap.Error(err))
				break
			}
			if size > maxAuditBytes {
				if next, n, err := setAside(a.path); err == nil {
					f.Close()
					f, size = next, n
					w.Reset(f)
				}
			}
		case <-ctx.Done():
			for {
				select {
				case line := <-a.queue:
					write(line)
				default:
					return nil
				}
			}
		}
	}
}

// setAside renames a file to a name with the time and opens a new one in its
// place.
func setAside(path string) (*os.File, int64, error) {
	if err := os.Rename(path, path+"."+time.Now().UTC().Format("20060102T150405.000")); err != nil {
		return nil, 0, err
	}
	return openAppend(path)
}

func openAppend(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, 0, err
	}
	s, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, s.Size(), nil
}

// feed copies audit records and alerts to operators who watch. A watcher that
// does not keep up loses lines and is told how many.
type feed struct {
	mu   sync.Mutex
	subs map[*feedSub]bool // guarded by mu
}

type feedSub struct {
	lines   chan []byte
	dropped atomic.Uint64
}

func newFeed() *feed { return &feed{subs: map[*feedSub]bool{}} }

func (f *feed) send(kind string, line []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.subs {
		out := append(append(append([]byte(`{"event":"`), kind...), `","data":`...), line...)
		select {
		case s.lines <- append(out, "}\n"...):
		default:
			s.dropped.Add(1)
		}
	}
}

func (f *feed) subscribe() (*feedSub, func()) {
	s := &feedSub{lines: make(chan []byte, 256)}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subs[s] = true
	return s, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.subs, s)
	}
}
