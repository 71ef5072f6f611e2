//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/control/model"
)

func controlLockCmd(t *controlTarget) *cobra.Command {
	var in control.NewLock
	var until, format string
	var wait bool
	var timeout time.Duration
	var target func() (kind, id string, err error)
	cmd := &cobra.Command{
		Use: "lock --user U", Short: "Shut somebody or something out, at once 锁定", Args: cobra.NoArgs,
		Example: "  yumen control lock --user alice --message \"call the security office\" --wait\n  yumen control lock --device DEV00000002 --until 8h",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if in.Kind, in.ID, err = target(); err != nil {
				return err
			}
			if in.Until, err = whenArg(until, time.Now()); err != nil {
				return err
			}
			if wait {
				in.Wait = timeout
			}
			var out control.Locked
			if err := t.do(cmd.Context(), "POST", "/v1/locks", in, &out); err != nil {
				return err
			}
			if err := output(cmd.OutOrStdout(), format, out, func(w io.Writer) { printLocked(w, &out, wait) }); err != nil {
				return err
			}
			for _, g := range out.Gateways {
				if !g.Applied {
					return fmt.Errorf("%s has not confirmed the lock: %s (yumen control status shows the gateways)", g.GatewayID, g.Result)
				}
			}
			return nil
		},
	}
	target = lockTarget(cmd)
	cmd.Flags().StringVar(&in.Message, "message", "", "shown to the person who is shut out")
	cmd.Flags().StringVar(&until, "until", "", "end: 8h, 2026-12-31 or 2026-12-31T18:00:00Z (default: until unlock)")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the connected gateways confirm, and say how long each took")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "longest wait, at most 30s")
	outputFlag(cmd, &format)
	return cmd
}

// lockTarget adds a flag for each kind that can be locked and returns which one
// was given.
func lockTarget(cmd *cobra.Command) func() (kind, id string, err error) {
	ids := map[string]*string{}
	for _, kind := range model.LockKinds {
		ids[kind] = cmd.Flags().String(kind, "", kind+" to choose; users and devices by name or identifier")
	}
	return func() (kind, id string, err error) {
		for k, v := range ids {
			if *v == "" {
				continue
			}
			if id != "" {
				return "", "", &usageError{errors.New("choose one thing at a time")}
			}
			kind, id = k, *v
		}
		if id == "" {
			return "", "", &usageError{fmt.Errorf("choose what by one of --%s", strings.Join(model.LockKinds, ", --"))}
		}
		return kind, id, nil
	}
}

func printLocked(w io.Writer, l *control.Locked, waited bool) {
	fmt.Fprintf(w, "%s locked (revision %d, committed in %v)\n", l.ID, l.Version, l.Committed.Round(10*time.Microsecond))
	if waited && len(l.Gateways) == 0 {
		fmt.Fprintln(w, "no gateway is connected; each learns it when it connects")
	}
	for _, g := range l.Gateways {
		if g.Applied {
			fmt.Fprintf(w, "  %s confirmed after %v\n", g.GatewayID, g.After.Round(10*time.Microsecond))
		} else {
			fmt.Fprintf(w, "  %s: %s\n", g.GatewayID, g.Result)
		}
	}
}

func controlUnlockCmd(t *controlTarget) *cobra.Command {
	var format string
	var target func() (kind, id string, err error)
	cmd := &cobra.Command{
		Use: "unlock --user U", Short: "Take a lock away, and a lock-out after wrong passwords 解除锁定", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			kind, id, err := target()
			if err != nil {
				return err
			}
			var d control.Done
			if err := t.do(cmd.Context(), "DELETE", "/v1/locks/"+url.PathEscape(kind)+"/"+url.PathEscape(id), nil, &d); err != nil {
				return err
			}
			return controlDone(cmd, format, d, "unlocked")
		},
	}
	target = lockTarget(cmd)
	outputFlag(cmd, &format)
	return cmd
}

func controlLocksCmd(t *controlTarget) *cobra.Command {
	return controlList(t, "locks", "List what is locked 查看锁定", "/v1/locks", "KIND ID SINCE UNTIL MESSAGE", func(l model.Lock, line func(...any)) {
		line(l.Kind, l.ID, l.Since, l.Until, l.Message)
	})
}

func controlSessionsCmd(t *controlTarget) *cobra.Command {
	return controlList(t, "sessions", "List who is signed in on which device 在线用户", "/v1/sessions", "USER DEVICE AGENT SIGNED-IN TOKEN-UNTIL APPS", func(s control.SessionInfo, line func(...any)) {
		line(s.UserID, s.DeviceID, s.AgentID, s.AuthTime, s.Expires, s.Apps)
	})
}

func controlSignOutCmd(t *controlTarget) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "signout USER DEVICE", Short: "End a user's sign-in on a device, each by name or identifier; it cuts at once 强制下线", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var d control.Done
			if err := t.do(cmd.Context(), "DELETE", "/v1/sessions/"+url.PathEscape(args[0])+"/"+url.PathEscape(args[1]), nil, &d); err != nil {
				return err
			}
			return controlDone(cmd, format, d, "signed out")
		},
	}
	outputFlag(cmd, &format)
	return cmd
}
