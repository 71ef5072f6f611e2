//go:build !linux

package badpath

import (
	"errors"
	"os/exec"
)

var errLinux = errors.New("network namespaces need Linux")

// InNamespace does nothing here; [NewKernel] then fails.
func InNamespace(*exec.Cmd) {}

// Kernel is of Linux only.
type Kernel struct{}

// Up fails.
func Up() error { return errLinux }

// NewKernel fails.
func NewKernel(int) (*Kernel, error) { return nil, errLinux }

// Vanish fails.
func (*Kernel) Vanish(func(int) bool) (int, error) { return 0, errLinux }

// Cut and Mend fail.
func (*Kernel) Cut() error  { return errLinux }
func (*Kernel) Mend() error { return errLinux }

// Dropped fails.
func (*Kernel) Dropped() (int, error) { return 0, errLinux }
