// Package testbed starts the real binary for tests: one process per role, on
// loopback ports of its own, with real peers around them.
//
//	testbed.go   owners, ports, folders, waiting
//	binary.go    the binary under test and its processes
//	site.go      a whole site: control center, gateway, agents
//	lone.go      a gateway alone, fed by signed list files
//	lists.go     list files made by the test
//	webapp.go    an application that records what reaches it
//	peers.go     nginx, Redis, PostgreSQL
//	browser.go   a browser that signs in at the provider's form
//	clients.go   curl, SOCKS5
//	audit.go     the audit files of gateway and control center
//
// Everything stays on 127.0.0.1 and [::1], and what a helper starts ends with
// its [Owner]. The binary is $YUMEN_BIN, or built once from this tree.
package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/internal/disk"
)

// Owner is whose a process or a folder is: a test, or a [Suite] that several
// tests share.
type Owner interface {
	Helper()
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Failed() bool
	Cleanup(func())
}

// Suite is an [Owner] that outlives a test. TestMain closes it.
type Suite struct {
	mu     sync.Mutex
	undo   []func()     // guarded by mu
	making atomic.Int32 // calls of Once under way
	failed atomic.Bool  // a test of the suite failed: logs are shown
}

// Helper does nothing.
func (s *Suite) Helper() {}

// Logf writes to standard error.
func (s *Suite) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// Fatalf panics; [Once] turns it into an error of each test that asks. Outside
// of Once the panic ends the program, so what the suite owns ends before.
func (s *Suite) Fatalf(format string, args ...any) {
	s.failed.Store(true)
	if s.making.Load() == 0 {
		s.Close()
	}
	panic(suiteError{fmt.Errorf(format, args...)})
}

type suiteError struct{ error }

// Failed reports whether something of the suite failed.
func (s *Suite) Failed() bool { return s.failed.Load() }

// Cleanup registers f for Close.
func (s *Suite) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.undo = append(s.undo, f)
}

// Close ends what the suite owns, the newest first.
func (s *Suite) Close() {
	for {
		s.mu.Lock()
		if len(s.undo) == 0 {
			s.mu.Unlock()
			return
		}
		f := s.undo[len(s.undo)-1]
		s.undo = s.undo[:len(s.undo)-1]
		s.mu.Unlock()
		f()
	}
}

// Once makes something for all tests of a suite, when the first one asks. The
// returned function fails a test when the making failed.
func Once[T any](s *Suite, what string, make func(Owner) T) func(testing.TB) T {
	get := sync.OnceValues(func() (v T, err error) {
		s.making.Add(1)
		defer func() {
			s.making.Add(-1)
			if p := recover(); p != nil {
				e, ok := p.(suiteError)
				if !ok {
					panic(p)
				}
				err = e
			}
		}()
		return make(s), nil
	})
	return func(t testing.TB) T {
		t.Helper()
		v, err := get()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		t.Cleanup(func() {
			if t.Failed() {
				s.failed.Store(true)
			}
		})
		return v
	}
}

// Long reports whether the long versions of tests were asked for.
func Long() bool { return os.Getenv("YUMEN_LONG") == "1" }

// folder returns a folder of o with a short path: a unix socket's is at most
// 107 bytes.
func folder(o Owner) string {
	o.Helper()
	dir, err := os.MkdirTemp("", "ym")
	if err != nil {
		o.Fatalf("make folder: %v", err)
	}
	o.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			o.Logf("remove %s: %v", dir, err)
		}
	})
	return dir
}

// Ports come from below the range that the system takes for clients, so that
// nobody takes one between its choice and its use. A process of tests takes them
// by blocks, whose locks it holds until it ends: several run at once.
const firstPort, lastPort, portBlock = 20000, 32000, 250

var ports struct {
	mu    sync.Mutex
	next  int         // guarded by mu
	end   int         // guarded by mu; of the block in hand
	locks []io.Closer // guarded by mu; kept, so that nobody closes them
}

// Port returns a port that is free for TCP and UDP on 127.0.0.1 and [::1], and
// that no other helper of this process or of another one gets.
func Port(o Owner) int {
	o.Helper()
	ports.mu.Lock()
	defer ports.mu.Unlock()
	for {
		for ; ports.next < ports.end; ports.next++ {
			if free(ports.next) {
				ports.next++
				return ports.next - 1
			}
		}
		if err := takePorts(); err != nil {
			o.Fatalf("no free port between %d and %d: %v", firstPort, lastPort, err)
		}
	}
}

// takePorts takes another block. The caller holds ports.mu.
func takePorts() error {
	dir := filepath.Join(os.TempDir(), "yumen-test-ports")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for first := firstPort; first < lastPort; first += portBlock {
		lock, err := disk.Lock(filepath.Join(dir, strconv.Itoa(first)))
		if err == nil {
			ports.locks = append(ports.locks, lock)
			ports.next, ports.end = first, first+portBlock
			return nil
		}
	}
	return errors.New("other tests have all of them")
}

func free(port int) bool {
	for _, host := range []string{"127.0.0.1", "::1"} {
		at := net.JoinHostPort(host, strconv.Itoa(port))
		ln, err := net.Listen("tcp", at)
		if err != nil {
			return false
		}
		ln.Close()
		pc, err := net.ListenPacket("udp", at)
		if err != nil {
			return false
		}
		pc.Close()
	}
	return true
}

// Loopback joins the address of an IP version with a port.
func Loopback(v6 bool, port int) string {
	host := "127.0.0.1"
	if v6 {
		host = "::1"
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// wait calls ready every 20 ms until it returns nil, and returns its last error
// after limit.
func wait(ctx context.Context, limit time.Duration, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %v: %w", limit, err)
		case <-tick.C:
		}
	}
}

var errNotYet = errors.New("not yet")

// Eventually waits until ok, and fails the owner with what after limit.
func Eventually(o Owner, limit time.Duration, what string, ok func() bool) {
	o.Helper()
	err := wait(context.Background(), limit, func() error {
		if ok() {
			return nil
		}
		return errNotYet
	})
	if err != nil {
		o.Fatalf("%s: %v", what, err)
	}
}

// demoPorts are those that `yumen demo` takes when they are free.
var demoPorts = []int{8443, 8444, 8445, 9464, 1080, 8081, 8082, 8083}

// HoldDemoPorts takes the ports that a demo prefers, so that each of several
// demos at once is given ports of its own by the system. Several processes of
// tests may hold them at once.
func HoldDemoPorts(o Owner) {
	shared := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		fault := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return errors.Join(fault, err)
	}}
	for _, p := range demoPorts {
		ln, err := shared.Listen(context.Background(), "tcp", Loopback(false, p))
		if err != nil {
			continue // somebody else's: a demo will not get it either
		}
		o.Cleanup(func() { ln.Close() })
	}
}
