//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/yumen-zt/yumen/cmd/yumen/demo"
)

// demoCmd returns `yumen demo`.
func demoCmd() *cobra.Command {
	var o demo.Options
	var save string
	var check, verbose bool
	cmd := &cobra.Command{
		Use: "demo", Short: "Run a whole site on this machine: gateway, control center, agent, applications (一键演示)", Args: cobra.NoArgs, Annotations: role,
		Example: "  yumen demo\n  yumen demo --app http://127.0.0.1:8080\n  yumen demo --check\n  yumen demo --save ./lab",
		Long: `Run a whole site on this machine, over real sockets, without root, domain or container.
As root on Linux its gateway also stands behind the guard, towards a network namespace
that the demo makes and takes away; the machine's own interfaces are left alone.
Keys, passwords and certificates are made for a laboratory: nothing of it belongs in production.`,
	}
	f := cmd.Flags()
	f.StringVar(&o.App, "app", "", "URL of an application of your own to put behind the gateway")
	f.StringVar(&o.Dir, "dir", "", "folder that keeps the site; default: one that is removed at the end")
	f.StringVar(&save, "save", "", "write the configuration of every role into this folder, and end")
	f.BoolVar(&check, "check", false, "walk the whole story and end; with --dir, the site that runs there")
	f.BoolVar(&verbose, "verbose", false, "show the roles' logs")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, out := cmd.Context(), cmd.OutOrStdout()
		if save != "" {
			if o.Dir != "" || check {
				return &usageError{errors.New("--save stands alone or with --app")}
			}
			o.Dir = save
			s, err := demo.Open(ctx, o, nil)
			if err != nil {
				return err
			}
			i := s.Info
			_, err = fmt.Fprintf(out, `written to %[1]s (users and passwords are in %[1]s/%[2]s); run all of it with
  yumen demo --dir %[1]s
or each role by itself, in front of applications of your own:
  yumen control run -c %[3]s
  yumen gateway run -c %[4]s
  yumen agent run -c %[5]s
  yumen app run --dir %[1]s/connector --gateway https://gateway.localhost:%[6]d --address %[7]s --service %[8]s
`, i.Dir, demo.InfoFile, i.Control.Config, i.Gateway.Config, i.Agent.Config, i.Gateway.Port, i.Gateway.Address, i.PortalAddress())
			return err
		}
		if check && o.Dir != "" {
			if i, err := demo.ReadInfo(o.Dir); err == nil && i.Running() {
				return i.Check(ctx, out)
			}
		}
		if o.Dir == "" {
			dir, err := os.MkdirTemp("", "yumen-demo-")
			if err != nil {
				return fmt.Errorf("make folder: %w", err)
			}
			defer os.RemoveAll(dir)
			o.Dir = filepath.Join(dir, "site")
		}
		began := time.Now()
		fmt.Fprintln(out, "laying out keys, certificates and configuration ...")
		s, err := demo.Open(ctx, o, demoLogger(verbose))
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var checked error
		checking := make(chan struct{})
		err = s.Run(ctx, func() {
			if !check {
				s.Info.Print(out)
				close(checking)
				return
			}
			fmt.Fprintf(out, "site ready after %s\n", time.Since(began).Round(time.Millisecond))
			go func() {
				defer close(checking)
				checked = s.Info.Check(ctx, out)
				cancel()
			}()
		})
		if err == nil && check {
			<-checking
			return checked
		}
		return err
	}
	return cmd
}

func demoLogger(verbose bool) *zap.Logger {
	level := zap.ErrorLevel
	if verbose {
		level = zap.InfoLevel
	}
	c := zap.NewDevelopmentEncoderConfig()
	c.EncodeLevel = zapcore.CapitalLevelEncoder
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(c), zapcore.Lock(os.Stderr), level))
}
