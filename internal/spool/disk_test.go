package spool

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// testDisk is a file system in memory that forgets what was not synced when its
// power is cut, and that fails when told to.
type testDisk struct {
	mu       sync.Mutex
	rng      *rand.Rand        // guarded by mu, like all
	now      map[string]*inode // names as the processes see them
	kept     map[string]*inode // names as the platter has them
	limit    int64             // bytes of all files; 0: none
	locked   map[string]bool
	failSync func(name string) error
	failRead func(name string) error
	syncs    int
	dead     bool // power is off: everything fails
}

type inode struct {
	data  []byte // as the processes see it
	kept  []byte // as the platter has it
	dirty bool
	taken int64 // allocated
}

func newDisk(seed uint64) *testDisk {
	return &testDisk{rng: rand.New(rand.NewPCG(seed, 1)), now: map[string]*inode{}, kept: map[string]*inode{}, locked: map[string]bool{}}
}

var errDead = errors.New("power is off")

// cut returns the disk as it is after a power cut: of what was not synced, any
// sectors and any renames may be there.
func (d *testDisk) cut() *testDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	after := newDisk(d.rng.Uint64())
	after.limit = d.limit
	names := map[string]*inode{}
	for n, i := range d.kept {
		names[n] = i
	}
	for n, i := range d.now { // creations and renames in flight
		if d.kept[n] != i && d.rng.IntN(2) == 0 {
			names[n] = i
		}
	}
	for n := range d.kept { // removals in flight
		if d.now[n] == nil && d.rng.IntN(2) == 0 {
			delete(names, n)
		}
	}
	for n, i := range names {
		data := append([]byte(nil), i.kept...)
		if i.dirty {
			if len(i.data) > len(data) && d.rng.IntN(2) == 0 {
				data = append(data, make([]byte, len(i.data)-len(data))...)
			}
			for off := 0; off < len(data); off += 512 {
				if d.rng.IntN(2) == 0 && off < len(i.data) {
					copy(data[off:min(off+512, len(data))], i.data[off:])
				}
			}
		}
		fresh := &inode{data: data, kept: append([]byte(nil), data...)}
		after.now[n], after.kept[n] = fresh, fresh
	}
	return after
}

func (d *testDisk) used() (n int64) {
	for _, i := range d.now {
		n += max(int64(len(i.data)), i.taken)
	}
	return n
}

func (d *testDisk) alive() error {
	if d.dead {
		return errDead
	}
	return nil
}

func (d *testDisk) MkdirAll(string) error { return nil }

func (d *testDisk) List(dir string) (names []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := range d.now {
		if filepath.Dir(n) == dir {
			names = append(names, filepath.Base(n))
		}
	}
	return names, d.alive()
}

func (d *testDisk) Create(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now[name] != nil {
		return nil, fs.ErrExist
	}
	if err := d.alive(); err != nil {
		return nil, err
	}
	i := &inode{}
	d.now[name] = i
	return &handle{d, i, name}, nil
}

func (d *testDisk) Open(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := d.now[name]
	if i == nil {
		return nil, fs.ErrNotExist
	}
	return &handle{d, i, name}, d.alive()
}

func (d *testDisk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now[from] == nil {
		return fs.ErrNotExist
	}
	if err := d.alive(); err != nil {
		return err
	}
	d.now[to] = d.now[from]
	delete(d.now, from)
	return nil
}

func (d *testDisk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now[name] == nil {
		return fs.ErrNotExist
	}
	if err := d.alive(); err != nil {
		return err
	}
	delete(d.now, name)
	return nil
}

func (d *testDisk) SyncDir(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := range d.kept {
		if filepath.Dir(n) == dir && d.now[n] == nil {
			delete(d.kept, n)
		}
	}
	for n, i := range d.now {
		if filepath.Dir(n) == dir {
			d.kept[n] = i
		}
	}
	return d.alive()
}

func (d *testDisk) Lock(name string) (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locked[name] {
		return nil, errors.New("locked")
	}
	d.locked[name] = true
	return unlock{d, name}, nil
}

type unlock struct {
	d    *testDisk
	name string
}

func (u unlock) Close() error {
	u.d.mu.Lock()
	defer u.d.mu.Unlock()
	delete(u.d.locked, u.name)
	return nil
}

type handle struct {
	d    *testDisk
	i    *inode
	name string
}

func (h *handle) ReadAt(b []byte, off int64) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if h.d.failRead != nil {
		if err := h.d.failRead(h.name); err != nil {
			return 0, err
		}
	}
	if off >= int64(len(h.i.data)) {
		return 0, io.EOF
	}
	n := copy(b, h.i.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, h.d.alive()
}

func (h *handle) WriteAt(b []byte, off int64) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if err := h.d.alive(); err != nil {
		return 0, err
	}
	var full error
	grow := off + int64(len(b)) - max(int64(len(h.i.data)), h.i.taken)
	if h.d.limit > 0 && grow > 0 {
		if free := h.d.limit - h.d.used(); grow > free {
			b = b[:max(int64(len(b))-(grow-max(free, 0)), 0)]
			full = syscall.ENOSPC
		}
	}
	if n := off + int64(len(b)); n > int64(len(h.i.data)) {
		h.i.data = append(h.i.data, make([]byte, n-int64(len(h.i.data)))...)
	}
	h.i.dirty = true
	return copy(h.i.data[off:], b), full
}

// Sync keeps the data, or loses the promise for good: after a failure the dirty
// pages count as clean, as on Linux.
func (h *handle) Sync() error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	h.d.syncs++
	if h.d.failSync != nil {
		if err := h.d.failSync(h.name); err != nil {
			h.i.dirty = false
			return err
		}
	}
	if h.i.dirty {
		h.i.kept = append([]byte(nil), h.i.data...)
		h.i.dirty = false
	}
	return h.d.alive()
}

func (h *handle) Truncate(size int64) error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if size < int64(len(h.i.data)) {
		h.i.data = h.i.data[:size:size]
	}
	h.i.dirty = true
	return h.d.alive()
}

func (h *handle) Size() (int64, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	return int64(len(h.i.data)), h.d.alive()
}

func (h *handle) Allocate(size int64) error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if h.d.limit > 0 && h.d.used()+size > h.d.limit {
		return syscall.ENOSPC
	}
	h.i.taken = size
	return h.d.alive()
}

func (h *handle) Close() error { return nil }

// segments returns the names of the segments of a class, oldest first.
func (d *testDisk) segments(c Class) (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := range d.now {
		if strings.HasSuffix(n, ".seg") && strings.Contains(n, "/"+c.String()+"/") {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

// spoil changes a file behind the spool's back.
func (d *testDisk) spoil(t testing.TB, name string, f func([]byte) []byte) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	i := d.now[name]
	if i == nil {
		t.Fatalf("no file %s", name)
	}
	i.data = f(append([]byte(nil), i.data...))
	i.kept = append([]byte(nil), i.data...)
}
