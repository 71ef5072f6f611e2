package privilege

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const child = "YUMEN_TEST_DROPPED"

// TestMain is the process that gives its privileges up, when it is the child.
func TestMain(m *testing.M) {
	keep := os.Getenv(child)
	if keep == "" {
		os.Exit(m.Run())
	}
	if err := dropped(keep == "some"); err != nil {
		fmt.Println(err)
		if errors.Is(err, ErrUnsupported) {
			os.Exit(3)
		}
		os.Exit(1)
	}
	os.Exit(0)
}

// dropped gives privileges up among many threads and looks at every one.
func dropped(some bool) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for range 20 { // threads in the kernel
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		wg.Go(func() {
			b := make([]byte, 1)
			_, _ = unix.Read(int(r.Fd()), b) // blocks a thread: Fd has taken it from the poller
			r.Close()
		})
		defer w.Close()
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if all, _ := os.ReadDir("/proc/self/task"); len(all) > 20 {
			break
		} else if time.Now().After(end) {
			return fmt.Errorf("%d threads only", len(all))
		}
	}
	c := Config{}
	want := "0000000000000000"
	if some {
		c, want = Config{Keep: []int{NetAdmin}, Exec: true, Write: []string{folder("mine"), os.DevNull, folder("none")}}, "0000000000001000"
	}
	if err := WithoutCapabilities(func() error {
		if unix.Sethostname([]byte("x")) == nil {
			return errors.New("a capability was in effect")
		}
		return nil
	}); err != nil {
		return err
	}
	if err := Drop(c); err != nil {
		return err
	}
	all, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(all) <= 20 {
		return fmt.Errorf("%d threads, %w", len(all), err)
	}
	for _, name := range all {
		raw, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		fields := map[string]string{}
		for line := range strings.SplitSeq(string(raw), "\n") {
			k, v, _ := strings.Cut(line, ":")
			fields[k] = strings.TrimSpace(v)
		}
		for k, v := range map[string]string{"CapEff": want, "CapPrm": want, "CapBnd": want, "CapInh": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"} {
			if fields[k] != v {
				return fmt.Errorf("%s: %s is %s, not %s", name, k, fields[k], v)
			}
		}
	}
	if n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); n != 0 || err != nil {
		return fmt.Errorf("dumpable: %d, %w", n, err)
	}
	if err := unix.Mount("none", "/tmp", "tmpfs", 0, ""); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("mount: %w", err)
	}
	if err := unix.PtraceAttach(os.Getppid()); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("ptrace: %w", err)
	}
	if err := exec.Command("/bin/true").Run(); (err == nil) != some {
		return fmt.Errorf("exec: %w", err)
	}
	if err := writes(some); err != nil {
		return err
	}
	// What a server does goes on.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	return ln.Close()
}

// folder is one of the folders that the test has made.
func folder(name string) string { return filepath.Join(os.Getenv(child+"_DIR"), name) }

// writes changes files, on several threads: those of its folder it may, those of
// another one only when nothing was said of folders.
func writes(confined bool) error {
	if v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION); errno != 0 || v < 3 {
		fmt.Println("NOT TESTED: no Landlock that knows truncation")
		return nil
	}
	mine, other := folder("mine"), folder("other")
	change := map[string]func(dir string) error{
		"write":    func(dir string) error { return os.WriteFile(filepath.Join(dir, "there"), []byte("x"), 0o600) },
		"make":     func(dir string) error { return os.WriteFile(filepath.Join(dir, "new"), []byte("x"), 0o600) },
		"truncate": func(dir string) error { return os.Truncate(filepath.Join(dir, "there"), 0) },
		"rename":   func(dir string) error { return os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b")) },
		"link":     func(dir string) error { return os.Symlink("x", filepath.Join(dir, "link")) },
		"folder":   func(dir string) error { return os.Mkdir(filepath.Join(dir, "sub"), 0o700) },
		"remove":   func(dir string) error { return os.Remove(filepath.Join(dir, "c")) },
		"socket": func(dir string) error {
			ln, err := net.Listen("unix", filepath.Join(dir, "sock"))
			if err == nil {
				err = ln.Close()
			}
			return err
		},
	}
	var wg sync.WaitGroup
	faults := make(chan error, 2*len(change))
	for name, f := range change {
		wg.Go(func() {
			runtime.LockOSThread()
			if err := f(mine); err != nil {
				faults <- fmt.Errorf("%s in its own folder: %w", name, err)
			}
			if err := f(other); confined != errors.Is(err, unix.EACCES) {
				faults <- fmt.Errorf("%s in another folder, confined %t: %w", name, confined, err)
			}
		})
	}
	wg.Wait()
	close(faults)
	if raw, err := os.ReadFile(filepath.Join(other, "read")); err != nil || string(raw) != "text" {
		return fmt.Errorf("read: %q, %w", raw, err)
	}
	if f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil || f.Close() != nil {
		return err
	}
	return <-faults
}

// Every thread is without capabilities, bounded, filtered, and may not gain any
// (S39).
func TestS39_EveryThreadIsWithoutPrivileges(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: there is nothing to give up without root")
	}
	for _, keep := range []string{"none", "some"} {
		dir := t.TempDir()
		for _, name := range []string{"mine", "other"} {
			if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
				t.Fatal(err)
			}
			for _, file := range []string{"there", "a", "c", "read"} {
				if err := os.WriteFile(filepath.Join(dir, name, file), []byte("text"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), child+"="+keep, child+"_DIR="+dir)
		out, err := cmd.CombinedOutput()
		var ee *exec.ExitError
		if errors.As(err, &ee) && ee.ExitCode() == 3 {
			t.Skipf("NOT TESTED: %s", out)
		}
		if err != nil {
			t.Errorf("keep %s: %v: %s", keep, err, out)
		}
		t.Logf("keep %s: %s", keep, out)
	}
}
