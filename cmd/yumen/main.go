// Command yumen is the gateway, the control center, the agent and their tools
// in one binary. `yumen help` lists the verbs.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/yumen-zt/yumen/crypto/selftest"
	"github.com/yumen-zt/yumen/internal/version"
)

// The exit codes of every verb.
const (
	exitFailed = 1 // the verb ran and did not succeed
	exitUsage  = 2 // wrong words on the command line
)

func main() {
	// The first signal asks for an orderly end, the second one is the system's.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], selftest.Run))
}

// role marks the verbs that run a role of the product. Before anything else
// they do the self-test of the cryptography; when it fails they do nothing.
var role = map[string]string{"role": ""}

// run runs the verb of args and returns the exit code. selfTest is for the
// verbs that are marked by role.
func run(ctx context.Context, args []string, selfTest func() error) int {
	root := rootCmd()
	root.SetArgs(args)
	ran := false // whatever fails before a verb runs is a fault of the words
	eachVerb(root, func(c *cobra.Command) {
		verb := c.RunE
		c.RunE = func(cmd *cobra.Command, args []string) error {
			ran = true
			if _, ok := cmd.Annotations["role"]; ok {
				if err := selfTest(); err != nil {
					return fmt.Errorf("%s is not started: %w", cmd.CommandPath(), err)
				}
			}
			return verb(cmd, args)
		}
	})
	err := root.ExecuteContext(ctx)
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case !ran || errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "yumen: %v (see yumen help)\n", err)
		return exitUsage
	}
	fmt.Fprintln(os.Stderr, "yumen:", err)
	return exitFailed
}

// eachVerb calls f for every command. One that only holds others gets a verb of
// its own first: help, or a fault when its word is none of the others.
func eachVerb(c *cobra.Command, f func(*cobra.Command)) {
	for _, sub := range c.Commands() {
		eachVerb(sub, f)
	}
	if !c.Runnable() {
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &usageError{fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())}
			}
			return cmd.Help()
		}
	}
	if c.RunE != nil {
		f(c)
	}
}

// usageError is a fault of the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func rootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "yumen",
		Short: "Zero-trust access gateway 零信任接入网关",
		Long: `Yumen is a zero-trust access gateway: one port at the edge, in front of applications.
玉门是零信任接入网关：部署在边缘，位于应用系统之前，对外只有一个端口。

Start with:  yumen demo`,
		SilenceUsage: true, SilenceErrors: true, Version: version.String(),
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(agentCmd(), enrollCmd(), certCmd(), explainCmd(), versionCmd())
	root.AddCommand(roleCmds()...)
	return root
}

func versionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "yumen", version.String())
			return err
		},
	}
}
