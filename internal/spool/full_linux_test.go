package spool

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/sm4gcm"
)

// TestR6_FullTmpfs is the test of a full disk on a tmpfs of 8 MiB, in a mount
// namespace of its own: the test binary runs itself there.
func TestR6_FullTmpfs(t *testing.T) {
	if dir := os.Getenv("YUMEN_SPOOL_TMPFS"); dir != "" {
		if err := syscall.Mount("spool", dir, "tmpfs", 0, "size=8m"); err != nil {
			t.Fatalf("mount tmpfs: %v", err)
		}
		filler := filepath.Join(dir, "filler")
		testFullDisk(t, Config{Dir: filepath.Join(dir, "s"), Key: testKey, Seal: sm4gcm.New, Reserve: 1 << 20, SegmentBytes: 256 << 10, SaveEvery: 10 * time.Millisecond}, fullDisk{
			fill: func() {
				f, err := os.Create(filler)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				for err == nil {
					_, err = f.Write(make([]byte, 64<<10))
				}
			},
			free: func() { os.Remove(filler) },
		})
		return
	}
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestR6_FullTmpfs$", "-test.v")
	cmd.Env = append(os.Environ(), "YUMEN_SPOOL_TMPFS="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in the mount namespace: %v\n%s", err, out)
	}
	t.Logf("%s", out)
}
