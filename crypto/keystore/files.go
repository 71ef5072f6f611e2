package keystore

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/yumen-zt/yumen/internal/disk"
)

const (
	maxFile       = 1 << 20 // bytes of a key or certificate file
	maxPassphrase = 4096    // bytes of a passphrase file
)

// secrecy says what a file's mode must keep others from.
type secrecy fs.FileMode

const (
	secret  secrecy = 0o077 // group and others have no access at all
	trusted secrecy = 0o022 // group and others may read but not write
)

// readFile returns the content of the regular file path. It refuses a symbolic
// link, a file that others than its owner can access beyond what s permits, a
// file of another user, and one of more than limit bytes.
func readFile(path string, s secrecy, limit int64) ([]byte, error) {
	before, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, cause(err))
	}
	if before.Mode()&fs.ModeSymlink != 0 {
		return nil, fmt.Errorf("read %s: it is a symbolic link (put the file itself there)", path)
	}
	if !before.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, cause(err))
	}
	defer func() { _ = f.Close() }() // only read
	// The open file is the one that counts: the path may have been exchanged
	// for a link since it was looked at.
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, cause(err))
	}
	if !os.SameFile(before, fi) {
		return nil, fmt.Errorf("read %s: the file was exchanged while it was opened", path)
	}
	if err := checkAccess(path, fi, s); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, cause(err))
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: more than %d bytes", path, limit)
	}
	return data, nil
}

// checkAccess refuses a file or folder that too many may access.
func checkAccess(path string, fi fs.FileInfo, s secrecy) error {
	if open := fi.Mode().Perm() & fs.FileMode(s); open != 0 {
		verb, remedy := "read", "600"
		switch {
		case fi.IsDir():
			verb, remedy = "enter", "700"
		case s == trusted:
			verb, remedy = "write", "go-w"
		}
		return fmt.Errorf("read %s: mode %04o lets group or others %s it (run: chmod %s %s)", path, fi.Mode().Perm(), verb, remedy, path)
	}
	return checkOwner(path, fi)
}

// checkDir refuses a store's folder that is a link, no folder or open to
// others. A folder that does not exist is no error.
func checkDir(dir string) error {
	fi, err := os.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("open key store %s: %w", dir, cause(err))
	case fi.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("open key store %s: it is a symbolic link (name the folder itself)", dir)
	case !fi.IsDir():
		return fmt.Errorf("open key store %s: not a folder", dir)
	}
	return checkAccess(dir, fi, secret)
}

// writeFile puts data into path so that a crash leaves the old file or the new:
// it writes beside the place, syncs, moves and syncs the folder, which it makes
// when it is absent. Without replace an existing file is an error that wraps
// fs.ErrExist.
func writeFile(path string, data []byte, mode fs.FileMode, replace bool) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, cause(err))
		}
	}()
	dir := filepath.Dir(path)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := checkDir(dir); err != nil {
		return err
	}
	tmp := filepath.Join(dir, "."+filepath.Base(path)+"."+strings.ToLower(rand.Text()))
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp) }() // gone already after a rename
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode) // whatever the umask
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if replace {
		err = os.Rename(tmp, path)
	} else {
		err = os.Link(tmp, path) // fails when path is there, unlike a rename
	}
	if err != nil {
		return err
	}
	return disk.SyncDir(dir)
}

// cause strips the path that package os puts into its errors: ours has it.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	var le *os.LinkError
	if errors.As(err, &le) {
		return le.Err
	}
	return err
}

// ReadPassphrase reads a passphrase file: the first line, without its line end.
// The file must be a regular file that only its owner can access; an empty
// passphrase, or a second line, is an error.
func ReadPassphrase(file string) ([]byte, error) {
	data, err := readFile(file, secret, maxPassphrase)
	if err != nil {
		return nil, err
	}
	data = bytes.TrimSuffix(bytes.TrimSuffix(data, []byte("\n")), []byte("\r"))
	if len(data) == 0 {
		return nil, fmt.Errorf("read %s: the passphrase is empty", file)
	}
	if bytes.ContainsAny(data, "\r\n") {
		return nil, fmt.Errorf("read %s: more than one line (a passphrase is one line)", file)
	}
	return data, nil
}
