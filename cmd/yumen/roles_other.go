//go:build !linux

package main

import "github.com/spf13/cobra"

// roleCmds returns none: here this is the agent and its tools. Gateway
// and control center are for Linux.
func roleCmds() []*cobra.Command { return nil }
