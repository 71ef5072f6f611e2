package ctlclient

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// identityOf returns what tells an open file from every copy of it: its inode
// and, where the file system keeps it, when that was made.
func identityOf(f *os.File) (inode uint64, birth int64, err error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return 0, 0, fmt.Errorf("look at %s: %w", f.Name(), err)
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		birth = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return st.Ino, birth, nil
}
