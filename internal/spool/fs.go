package spool

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/yumen-zt/yumen/internal/disk"
)

// fsys is what the spool needs of a disk. Names are paths.
type fsys interface {
	MkdirAll(dir string) error
	List(dir string) ([]string, error)   // names of the files, in any order
	Create(name string) (file, error)    // for reading and writing; it must not exist
	Open(name string) (file, error)      // for reading
	Rename(from, to string) error        // replaces to
	Remove(name string) error            //
	SyncDir(dir string) error            // makes creations and renames last
	Lock(name string) (io.Closer, error) // one holder among all processes; fails at once
}

type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error               // data and size, as fdatasync
	Truncate(size int64) error //
	Size() (int64, error)      //
	Allocate(size int64) error // takes the space of size bytes, or fails
}

// osFS is the operating system's.
type osFS struct{}

func (osFS) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }

func (osFS) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (osFS) Create(name string) (file, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Open(name string) (file, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Rename(from, to string) error { return os.Rename(from, to) }
func (osFS) Remove(name string) error     { return os.Remove(name) }
func (osFS) SyncDir(dir string) error     { return disk.SyncDir(dir) }

func (osFS) Lock(name string) (io.Closer, error) { return disk.Lock(filepath.Clean(name)) }

type osFile struct{ *os.File }

func (f osFile) Sync() error { return dataSync(f.File) }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f osFile) Allocate(size int64) error { return allocate(f.File, size) }

// zeroFill takes space by writing.
func zeroFill(f io.WriterAt, size int64) error {
	zeros := make([]byte, 256<<10)
	for off := int64(0); off < size; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// noSpace reports whether err says that the disk, or this user's share of it,
// is full.
func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || isQuota(err)
}
