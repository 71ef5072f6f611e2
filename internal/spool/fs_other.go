//go:build !unix

package spool

import (
	"io"
	"os"
)

// lockFile opens the file for this process; systems without flock keep a file
// that is open for writing from being removed, and no more.
func lockFile(name string) (io.Closer, error) {
	return os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
}

func syncDir(string) error { return nil }

func isQuota(error) bool { return false }
