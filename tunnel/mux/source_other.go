//go:build !unix

package mux

const pollable = false

func (s *source) try(uintptr) bool { return true }
