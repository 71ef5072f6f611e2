package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// findBinary returns the path of the binary under test, and a function that removes
// what it built.
var findBinary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("YUMEN_BIN"); path != "" {
		return filepath.Abs(path)
	}
	dir, err := os.MkdirTemp("", "yumen-bin-")
	if err != nil {
		return "", err
	}
	built = dir
	path := filepath.Join(dir, "yumen")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/yumen-zt/yumen/cmd/yumen")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the binary: %w\n%s", err, out)
	}
	return path, nil
})

var built string // folder of a binary that we built

// RemoveBinary removes the binary when this process built it. TestMain calls it
// last.
func RemoveBinary() {
	if built != "" {
		_ = os.RemoveAll(built) // a folder of the system's temporary ones
	}
}

// Binary returns the path of the binary under test.
func Binary(o Owner) string {
	o.Helper()
	path, err := findBinary()
	if err != nil {
		o.Fatalf("%v", err)
	}
	return path
}

// Process is a program that a test runs. Its end is waited for.
type Process struct {
	Name string
	o    Owner
	cmd  *exec.Cmd
	out  *tail
	done chan struct{} // closed when it has ended
	err  error         // set before done is closed
}

// tail keeps the last bytes of a program's output.
type tail struct {
	mu sync.Mutex
	b  []byte // guarded by mu
}

const tailBytes = 256 << 10

// Write takes all of p.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.b = append(t.b, p...); len(t.b) > tailBytes {
		t.b = append(t.b[:0], t.b[len(t.b)-tailBytes/2:]...)
	}
	return len(p), nil
}

// String returns what is kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}

// Run starts the binary with these words.
func Run(o Owner, name string, args ...string) *Process {
	o.Helper()
	if n, ok := limits.Load(o); ok {
		args = append([]string{"-c", fmt.Sprintf("ulimit -n %d; exec \"$0\" \"$@\"", n), Binary(o)}, args...)
		return start(o, name, exec.Command("/bin/sh", args...))
	}
	return start(o, name, exec.Command(Binary(o), args...))
}

var limits sync.Map // Owner → descriptors of what it runs

// Limited gives the binaries that o runs from here on so many descriptors.
func Limited(o Owner, descriptors int) {
	limits.Store(o, descriptors)
	o.Cleanup(func() { limits.Delete(o) })
}

// start starts cmd; it ends with o at the latest.
// RunOther is Run for a program that is not ours.
func RunOther(o Owner, name, path string, args ...string) *Process {
	o.Helper()
	return start(o, name, exec.Command(path, args...))
}

func start(o Owner, name string, cmd *exec.Cmd) *Process {
	o.Helper()
	p := &Process{Name: name, o: o, cmd: cmd, out: &tail{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.out, p.out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true // a terminal's interrupt is the test's to handle
	if err := cmd.Start(); err != nil {
		o.Fatalf("start %s: %v", name, err)
	}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	o.Cleanup(func() {
		if err := p.Stop(); err != nil && !errors.Is(err, errKilled) {
			o.Logf("%s: %v", name, err)
		}
		if o.Failed() {
			o.Logf("--- output of %s\n%s", name, lastLines(p.Output(), 60))
		}
	})
	return p
}

func lastLines(s string, n int) string {
	b := bytes.TrimRight([]byte(s), "\n")
	at := len(b)
	for ; n > 0 && at > 0; n-- {
		at = max(bytes.LastIndexByte(b[:at], '\n'), 0)
	}
	return string(b[at:])
}

// Output returns the end of what the process has written.
func (p *Process) Output() string { return p.out.String() }

// PID returns the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// CPU returns the processor time that the process has used; it has ended.
func (p *Process) CPU() time.Duration {
	<-p.done
	return p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the process lives.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal.
func (p *Process) Signal(s syscall.Signal) {
	p.o.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.o.Fatalf("signal %s: %v", p.Name, err)
	}
}

// errKilled says that a process had to be killed.
var errKilled = errors.New("killed")

// stopLimit is how long a process may take for an orderly end.
const stopLimit = 20 * time.Second

// Stop asks for an orderly end and waits for it; a process that does not end in
// time is killed, which is an error.
func (p *Process) Stop() error {
	if !p.Running() {
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return p.err
	case <-time.After(stopLimit):
		p.Kill()
		return fmt.Errorf("%w: %s did not end within %v of SIGTERM", errKilled, p.Name, stopLimit)
	}
}

// Kill ends the process as a crash would, and waits.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// Wait waits for the end and returns the exit code.
func (p *Process) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("%s still runs: %w", p.Name, ctx.Err())
	}
}

// until waits until ready returns nil, and fails with the process's output when
// it ends before or takes longer than limit.
func (p *Process) until(limit time.Duration, ready func() error) {
	p.o.Helper()
	err := wait(context.Background(), limit, func() error {
		if !p.Running() {
			return nil
		}
		return ready()
	})
	if err != nil || !p.Running() {
		p.o.Fatalf("%s is not ready: %v (ended: %v)\n%s", p.Name, err, !p.Running(), lastLines(p.Output(), 40))
	}
}

// Verb runs the binary to its end and returns its standard output.
func Verb(ctx context.Context, o Owner, args ...string) (string, error) {
	o.Helper()
	cmd := exec.CommandContext(ctx, Binary(o), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("yumen %v: %w\n%s", args, err, errs.String())
	}
	return out.String(), nil
}
