//go:build !unix

package ctlclient

import (
	"io"
	"os"
)

// lockFile only opens path: there is no advisory lock to take here.
func lockFile(path string) (io.Closer, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
}

// syncDir does nothing: folders cannot be synced here.
func syncDir(string) error { return nil }
