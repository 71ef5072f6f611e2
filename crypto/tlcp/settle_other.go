//go:build !unix

package tlcp

const pollable = false

func (l *lull) try(uintptr) bool { return true }
