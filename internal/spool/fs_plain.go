//go:build !linux

package spool

import "os"

func dataSync(f *os.File) error { return f.Sync() }

func allocate(f *os.File, size int64) error { return zeroFill(f, size) }
