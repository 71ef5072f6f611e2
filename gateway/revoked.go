package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy/login"
)

// revokeFor is how long a revocation counts: as long as a sealed cookie may
// live, whichever gateway of the site made it.
const revokeFor = login.MaxLifetime

// revoked keeps the revocations over a restart, one JSON line each: a cookie
// outlives the process. A line is written at once and synced within a second,
// so a kill loses nothing and a power cut one second.
type revoked struct {
	path string

	mu    sync.Mutex
	file  *os.File // guarded by mu
	dirty bool     // guarded by mu
	lines int      // guarded by mu; in the file
}

type revokedLine struct {
	At time.Time `json:"at"`
	access.Revocation
}

// maxRevokedLines is where the file is written anew without what has lapsed.
const maxRevokedLines = 200_000

// openRevoked returns the log at path and what it holds. damaged tells of lines
// that cannot be read: the last one may be cut short by a crash, others not.
func openRevoked(path string, now time.Time) (r *revoked, all []access.Revocation, damaged int, err error) {
	lines, damaged, err := readRevoked(path, now)
	if err != nil {
		return nil, nil, 0, err
	}
	r = &revoked{path: path}
	if err := r.rewrite(lines); err != nil {
		return nil, nil, 0, err
	}
	for _, l := range lines {
		all = append(all, l.Revocation)
	}
	return r, all, damaged, nil
}

func readRevoked(path string, now time.Time) (lines []revokedLine, damaged int, err error) {
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("read revocations: %w", err)
	}
	whole := bytes.LastIndexByte(raw, '\n') + 1
	in := bufio.NewScanner(bytes.NewReader(raw[:whole]))
	for in.Scan() {
		var l revokedLine
		if json.Unmarshal(in.Bytes(), &l) != nil || l.SessionID == "" && l.UserID == "" {
			damaged++
			continue
		}
		if now.Sub(l.At) < revokeFor {
			lines = append(lines, l)
		}
	}
	if in.Err() != nil {
		damaged++
	}
	return lines, damaged, nil
}

// rewrite puts lines in the place of the file. The caller holds mu, or is alone.
func (r *revoked) rewrite(lines []revokedLine) error {
	var b bytes.Buffer
	for i := range lines {
		if err := writeLine(&b, &lines[i]); err != nil {
			return err
		}
	}
	if err := storeFile(r.path, b.Bytes()); err != nil {
		return err
	}
	f, err := os.OpenFile(r.path, os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open revocations: %w", err)
	}
	if r.file != nil {
		r.file.Close() // replaced; what it had is in the new one
	}
	r.file, r.lines = f, len(lines)
	return nil
}

func writeLine(b *bytes.Buffer, l *revokedLine) error {
	raw, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("store revocation: %w", err)
	}
	b.Write(raw)
	b.WriteByte('\n')
	return nil
}

// add appends all, which are in force already.
func (r *revoked) add(all []access.Revocation, now time.Time) error {
	var b bytes.Buffer
	for _, v := range all {
		if v.UserID != "" && v.IssuedBefore.IsZero() {
			v.IssuedBefore = now
		}
		if err := writeLine(&b, &revokedLine{now, v}); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return fmt.Errorf("store revocation: %w", fs.ErrClosed)
	}
	if _, err := r.file.Write(b.Bytes()); err != nil {
		return fmt.Errorf("store revocation: %w", err)
	}
	r.dirty = true
	if r.lines += len(all); r.lines < maxRevokedLines {
		return nil
	}
	lines, _, err := readRevoked(r.path, now)
	if err == nil {
		err = r.rewrite(lines)
	}
	r.lines = 0 // at the earliest after as many again
	return err
}

func (r *revoked) sync() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.dirty || r.file == nil {
		return nil
	}
	r.dirty = false
	if err := r.file.Sync(); err != nil {
		return fmt.Errorf("store revocations: %w", err)
	}
	return nil
}

func (r *revoked) close() error {
	err := r.sync()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file != nil {
		err = errors.Join(err, r.file.Close())
		r.file = nil
	}
	return err
}

// recall puts the stored revocations in force.
func (g *Gateway) recall(state string) error {
	path := filepath.Join(state, "revoked.jsonl")
	r, all, damaged, err := openRevoked(path, g.now())
	if err != nil {
		return err
	}
	g.revoked = r
	g.access.Narrow(access.Delta{Revoke: all})
	if damaged > 0 {
		g.alerts.Raise(alert.Alert{Code: alert.StateAltered, Detail: fmt.Sprintf("%s: %d lines cannot be read", path, damaged)})
	}
	return nil
}

// syncRevoked syncs what was remembered, until ctx is done.
func (g *Gateway) syncRevoked(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := g.revoked.sync(); err != nil {
				g.log.Error("revocations not synced, a power cut forgets them", zap.Error(err))
			}
		}
	}
}

// remember stores revocations that are in force.
func (g *Gateway) remember(all []access.Revocation) {
	if len(all) == 0 || g.heir.Load() != nil { // the folder is the new process's, which has them
		return
	}
	if err := g.revoked.add(all, g.now()); err != nil {
		g.log.Error("revocation not stored, a restart forgets it", zap.Error(err))
		g.alerts.Raise(alert.Alert{Code: alert.InternalFault, Reason: reason.InternalError, Detail: err.Error()})
	}
}
