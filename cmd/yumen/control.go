package main

import "github.com/spf13/cobra"

// controlCmd returns the verbs of the control center.
func controlCmd() *cobra.Command {
	return &cobra.Command{Use: "control", Short: "run and operate the reference control center"}
}
