//go:build !linux

package demo

import "errors"

type namespace struct{}

func (namespace) do(func() error) error { return errors.ErrUnsupported }

func openOutside(string) (*outside, error) {
	return nil, errors.New("it needs Linux 需要 Linux")
}

func (*outside) close() error { return nil }
