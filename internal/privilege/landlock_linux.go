package privilege

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What Landlock keeps to the folders of [Config.Write], by the version of its
// interface in the kernel that first knew it. Opening for reading, and
// executing, stay free: a reload may name files that nobody knew at the start.
const (
	changes = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_MAKE_SYM
	changes2 = unix.LANDLOCK_ACCESS_FS_REFER
	changes3 = unix.LANDLOCK_ACCESS_FS_TRUNCATE

	ofFiles = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE // all that a rule for a file may name
)

// confine lets the file system be changed below the folders of paths, and in the
// files of paths, alone. no_new_privs must be set. On a kernel without Landlock
// it does nothing.
func confine(paths []string) error {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return nil //nolint:nilerr // not built in, or not switched on
	}
	what := uint64(changes)
	if version >= 2 {
		what |= changes2
	}
	if version >= 3 {
		what |= changes3
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: what}
	set, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Handled_access_fs), 0)
	if errno != 0 {
		return fmt.Errorf("confine writing: %w", errno)
	}
	defer unix.Close(int(set))
	for _, path := range paths {
		if err := permit(int(set), path, what); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("confine writing to %s: %w", path, err)
		}
	}
	if err := all(unix.SYS_LANDLOCK_RESTRICT_SELF, set, 0, 0); err != nil {
		return fmt.Errorf("confine writing: %w", err)
	}
	return nil
}

// permit adds path to a set of rules.
func permit(set int, path string, what uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		what &= ofFiles
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: what, Parent_fd: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(set), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	runtime.KeepAlive(&rule)
	if errno != 0 {
		return errno
	}
	return nil
}
