package spool

import (
	"crypto/hmac"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
)

// maxSpans bounds the spans in a cursor; what does not fit is delivered again
// after a crash.
const maxSpans = 4096

// cursor is the content of a cursor file.
type cursor struct {
	next uint64
	done spans
	gaps []Gap
}

func (c *cursor) encode(k *keys, class Class) []byte {
	b := make([]byte, 0, 28+16*len(c.done)+gapSize*len(c.gaps)+macSize)
	b = append(b, cursorMagic...)
	b = be.AppendUint16(b, version)
	b = append(b, byte(class), 0)
	b = be.AppendUint32(b, uint32(len(c.done)))
	b = be.AppendUint32(b, uint32(len(c.gaps)))
	b = be.AppendUint64(b, c.next)
	for _, p := range c.done {
		b = be.AppendUint64(b, p.from)
		b = be.AppendUint64(b, p.to)
	}
	b = appendGaps(b, c.gaps)
	return append(b, k.mac("cursor", b)...)
}

func parseCursor(k *keys, class Class, b []byte) (*cursor, error) {
	n := len(b) - macSize
	if n < 28 || !hmac.Equal(k.mac("cursor", b[:n]), b[n:]) {
		return nil, errors.New("read cursor: it was altered, or another key wrote it")
	}
	s, g := int64(be.Uint32(b[12:])), int64(be.Uint32(b[16:]))
	if string(b[:8]) != cursorMagic || be.Uint16(b[8:]) != version || b[10] != byte(class) || int64(n) != 28+16*s+gapSize*g {
		return nil, errors.New("read cursor: unknown format")
	}
	c := &cursor{next: be.Uint64(b[20:])}
	rest := b[28:n]
	for range s {
		c.done.add(be.Uint64(rest), be.Uint64(rest[8:]))
		rest = rest[16:]
	}
	var err error
	c.gaps, err = parseGaps(rest)
	return c, err
}

func (l *log) cursorName() string { return filepath.Join(l.dir, "cursor") }

// writeCursor replaces the cursor file: beside, synced, renamed.
func (l *log) writeCursor(c *cursor) error {
	fsys, tmp := l.s.cfg.fs, l.cursorName()+".new"
	if err := fsys.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("save cursor: %w", err)
	}
	f, err := fsys.Create(tmp)
	if err != nil {
		return fmt.Errorf("save cursor: %w", err)
	}
	if _, err = f.WriteAt(c.encode(&l.s.keys, l.class), 0); err == nil {
		err = f.Sync()
	}
	f.Close()
	if err == nil {
		err = fsys.Rename(tmp, l.cursorName())
	}
	if err == nil {
		err = fsys.SyncDir(l.dir)
	}
	if err != nil {
		fsys.Remove(tmp)
		return fmt.Errorf("save cursor: %w", err)
	}
	return nil
}

// readCursor returns nil when there is no cursor, and an error when it can not
// be believed.
func (l *log) readCursor() (*cursor, error) {
	f, err := l.s.cfg.fs.Open(l.cursorName())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read cursor: %w", err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, fmt.Errorf("read cursor: %w", err)
	}
	if size > 28+maxSpans*16+2*knownGaps*gapSize+macSize {
		return nil, fmt.Errorf("read cursor: %d bytes are too many", size)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read cursor: %w", err)
	}
	return parseCursor(&l.s.keys, l.class, b)
}
