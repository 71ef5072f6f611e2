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
	onFullMount(t, func(dir string) error { return syscall.Mount("spool", dir, "tmpfs", 0, "size=8m") })
}

// TestR6_FullLoop is the same on an ext4 of 16 MiB in a file.
func TestR6_FullLoop(t *testing.T) {
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("SKIPPED, NOT PASSED: mkfs.ext4 is needed")
	}
	onFullMount(t, func(dir string) error {
		image := dir + ".ext4"
		f, err := os.Create(image)
		if err != nil {
			return err
		}
		if err := f.Truncate(16 << 20); err != nil {
			return err
		}
		f.Close()
		for _, c := range [][]string{{"mkfs.ext4", "-q", "-F", "-m", "0", image}, {"mount", "-o", "loop", image, dir}} {
			if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
				t.Logf("%v: %s", c, out)
				return err
			}
		}
		return nil
	})
}

func onFullMount(t *testing.T, mount func(dir string) error) {
	if dir := os.Getenv("YUMEN_SPOOL_FULL"); dir != "" {
		if err := mount(dir); err != nil {
			t.Fatalf("mount: %v", err)
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
		t.Skip("SKIPPED, NOT PASSED: mounting needs root")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "YUMEN_SPOOL_FULL="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in the mount namespace: %v\n%s", err, out)
	}
	t.Logf("%s", out)
}
