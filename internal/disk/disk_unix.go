//go:build unix

package disk

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Lock takes the lock of the file at path, which it makes, or fails at once:
// one holder among all processes. The lock ends with the process or with Close.
func Lock(path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// SyncDir makes creations and renames in dir survive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
