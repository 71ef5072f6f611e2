//go:build !unix

package disk

import (
	"io"
	"os"
)

// Lock only opens the file at path: systems without flock keep a file that is
// open for writing from being removed, and no more.
func Lock(path string) (io.Closer, error) { return os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) }

// SyncDir does nothing: folders can not be synced here.
func SyncDir(string) error { return nil }
