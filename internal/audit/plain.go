package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// plainStore keeps records as lines of JSON in one file that is set aside when
// it is full. It is the writer goroutine's.
type plainStore struct {
	path     string
	maxBytes int64
	keep     int
	now      func() time.Time
	rotated  func()
	f        *os.File
	size     int64
	dirty    bool
	aside    int // how many were set aside
}

// open opens the file and makes it readable by its owner only.
func (p *plainStore) open() error {
	f, err := os.OpenFile(p.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", p.path)
	}
	if err == nil && st.Mode().Perm()&0o077 != 0 {
		err = f.Chmod(0o600)
	}
	if err != nil {
		f.Close()
		return err
	}
	p.f, p.size = f, st.Size()
	return nil
}

func (p *plainStore) write(lines []byte, _ int) error {
	if err := p.rotate(int64(len(lines))); err != nil {
		return err
	}
	done, err := p.f.Write(lines)
	if err != nil {
		// No half line may stay: the next would continue it.
		if done > 0 && p.f.Truncate(p.size) != nil {
			p.f.Close()
			p.f = nil
		}
		return err
	}
	p.size += int64(len(lines))
	p.dirty = true
	return nil
}

// rotate sets the file aside when more would make it too large, and opens it
// again after an error.
func (p *plainStore) rotate(more int64) error {
	if p.f == nil {
		return p.open()
	}
	if p.size == 0 || p.size+more <= p.maxBytes {
		return nil
	}
	_ = p.sync()
	p.f.Close()
	p.f = nil
	aside := p.path + "." + p.now().UTC().Format("20060102T150405.000000000Z")
	if _, err := os.Lstat(aside); err == nil {
		aside += fmt.Sprintf("-%06d", p.aside)
	}
	if err := os.Rename(p.path, aside); err != nil {
		return errors.Join(err, p.open())
	}
	p.aside++
	p.rotated()
	p.prune()
	return p.open()
}

// prune removes the oldest files beyond keep.
func (p *plainStore) prune() {
	old, err := Rotated(p.path)
	if err != nil {
		return
	}
	for _, path := range old[:max(0, len(old)-p.keep)] {
		os.Remove(path)
	}
}

func (p *plainStore) sync() error {
	if p.f == nil || !p.dirty {
		return nil
	}
	if err := p.f.Sync(); err != nil {
		return err
	}
	p.dirty = false
	return nil
}

func (p *plainStore) tick() error { return nil }

func (p *plainStore) close() error {
	err := p.sync()
	if p.f != nil {
		p.f.Close()
	}
	return err
}

// Rotated returns the files that were set aside of path, the oldest first.
func Rotated(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), filepath.Base(path)+".")
		if ok && len(rest) >= 26 && rest[8] == 'T' && e.Type().IsRegular() {
			out = append(out, filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
	slices.Sort(out)
	return out, nil
}
