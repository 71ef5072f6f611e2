//go:build unix

package keystore

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// checkOwner refuses what belongs to neither root nor the user of this process.
func checkOwner(path string, fi fs.FileInfo) error {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("read %s: its owner is unknown", path)
	}
	if uid := os.Geteuid(); st.Uid != 0 && int(st.Uid) != uid {
		return fmt.Errorf("read %s: it belongs to user %d, not to user %d of this process (run: chown %d %s)", path, st.Uid, uid, uid, path)
	}
	return nil
}
