//go:build linux

package main

import "time"

func program(int) error                { return nil }
func goodput(int, time.Duration) error { return nil }
