package bpf

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ensureBPFFS mounts the file system that pins need, when dir has none.
func ensureBPFFS(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil && uint32(st.Type) == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make pin folder: %w", err)
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w (mount it at start: mount -t bpf bpf %s)", dir, err, dir)
	}
	return nil
}
