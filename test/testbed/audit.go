package testbed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/gateway"
	"github.com/yumen-zt/yumen/internal/audit"
)

// AuditFile reads the audit records of a role from their file.
type AuditFile struct {
	Path    string
	Gateway string // a gateway's configuration: its sealed store is read instead
}

// raw returns the lines that are on disk.
func (f AuditFile) raw() ([]byte, error) {
	if f.Gateway == "" {
		return os.ReadFile(f.Path)
	}
	store, ok := opened.Load(f.Gateway)
	if !ok {
		s, _, err := gateway.AuditFolder(f.Gateway)
		if err != nil {
			return nil, err
		}
		store, _ = opened.LoadOrStore(f.Gateway, s)
	}
	var b bytes.Buffer
	_, err := audit.Selection{}.Copy(&b, store.(*audit.Sealing))
	return b.Bytes(), err
}

// opened has the stores by configuration: their keys take time to derive.
var opened sync.Map

// Records returns the whole records that stand in the file now. A file that
// does not exist yet has none.
func (f AuditFile) Records() ([]audit.Record, error) {
	raw, err := f.raw()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	var out []audit.Record
	for line := range bytes.Lines(raw) {
		if line[len(line)-1] != '\n' {
			break // being written
		}
		var r audit.Record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("%s%s: line %q: %w", f.Path, f.Gateway, line, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// Find returns the records that match.
func (f AuditFile) Find(o Owner, match func(*audit.Record) bool) []audit.Record {
	o.Helper()
	all, err := f.Records()
	if err != nil {
		o.Fatalf("read audit: %v", err)
	}
	var out []audit.Record
	for i := range all {
		if match(&all[i]) {
			out = append(out, all[i])
		}
	}
	return out
}

// Await waits until at least n records match, and returns them. Sinks write
// with a delay.
func (f AuditFile) Await(o Owner, n int, what string, match func(*audit.Record) bool) []audit.Record {
	o.Helper()
	var found []audit.Record
	err := wait(context.Background(), 10*time.Second, func() error {
		if found = f.Find(o, match); len(found) >= n {
			return nil
		}
		return errNotYet
	})
	if err != nil {
		o.Fatalf("audit of %s: %d records, at least %d wanted: %v\n%s", what, len(found), n, err, f.Tail(20))
	}
	return found
}

// Tail returns the newest n lines, for the message of a failure.
func (f AuditFile) Tail(n int) string {
	raw, err := f.raw()
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return strings.Join(lines[max(len(lines)-n, 0):], "\n")
}
