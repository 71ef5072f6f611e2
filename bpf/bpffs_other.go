//go:build !linux

package bpf

// ensureBPFFS has nothing to mount on this system.
func ensureBPFFS(string) error { return ErrUnsupported }
