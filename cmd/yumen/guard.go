//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/yumen-zt/yumen/bpf"
	"github.com/yumen-zt/yumen/bpf/nft"
	"github.com/yumen-zt/yumen/gateway"
)

// guardCmd returns `yumen guard`.
func guardCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "guard", Short: "Switch and watch the guard in front of the gateway (防护)"}
	cmd.AddCommand(guardOnCmd(), guardConfirmCmd(), guardOffCmd(), guardStatusCmd(), guardTopCmd(), guardDropsCmd())
	return cmd
}

func guardOnCmd() *cobra.Command {
	on := &cobra.Command{
		Use: "on", Short: "Close every port that is not published; undone after 60 s unless confirmed", Args: cobra.NoArgs,
		Long: `Close every port of the guarded interface but the published ones. Connections that
are established live on, also the SSH session that this runs from. It is refused
when that session's address may not manage, and undone after 60 s unless you run
yumen guard confirm, best from a new session.
关闭受保护网卡上所有未公开的端口；已建立的连接（包括当前 SSH 会话）不受影响。
如果 60 秒内没有执行 yumen guard confirm，将自动撤销。`,
	}
	call := socketFlag(on)
	var format string
	outputFlag(on, &format)
	on.RunE = func(cmd *cobra.Command, _ []string) error {
		from, err := sshClient(os.Getenv("SSH_CONNECTION"))
		if err != nil {
			return err
		}
		var reply gateway.GuardOnReply
		if err := call().Do(cmd.Context(), "POST", "/guard/on", gateway.GuardOnRequest{From: from}, &reply); err != nil {
			return err
		}
		return output(cmd.OutOrStdout(), format, reply, func(w io.Writer) {
			if reply.ConfirmBy.IsZero() {
				fmt.Fprintln(w, "the guard is on 防护已开启")
				return
			}
			fmt.Fprintf(w, "the guard is on until %s; open a new session, then run yumen guard confirm\n防护已临时开启，请在新会话中执行 yumen guard confirm 确认\n", reply.ConfirmBy.Local().Format(time.TimeOnly))
		})
	}
	return on
}

// sshClient returns the address that this SSH session comes from; the zero
// address outside of one.
func sshClient(connection string) (netip.Addr, error) {
	first, _, _ := strings.Cut(connection, " ")
	if first == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(first)
	if err != nil {
		return a, fmt.Errorf("read SSH_CONNECTION: %w (unset it to go on without the check)", err)
	}
	return a.WithZone("").Unmap(), nil
}

func guardConfirmCmd() *cobra.Command {
	confirm := &cobra.Command{Use: "confirm", Short: "Keep the guard on, over restarts, too", Args: cobra.NoArgs}
	call := socketFlag(confirm)
	confirm.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := call().Do(cmd.Context(), "POST", "/guard/confirm", struct{}{}, nil); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "confirmed: the guard stays on 已确认，防护保持开启")
		return err
	}
	return confirm
}

func guardOffCmd() *cobra.Command {
	off := &cobra.Command{
		Use: "off", Short: "Take the guard off the interface", Args: cobra.NoArgs,
		Long: "Take the guard off. When the gateway does not run, name the interface:\n  yumen guard off --interface eth0",
	}
	call := socketFlag(off)
	iface := off.Flags().String("interface", "", "take a pinned guard off this interface, without the gateway")
	pins := off.Flags().String("pin-dir", "", "guard.pin_dir of gateway.yaml, with --interface")
	off.RunE = func(cmd *cobra.Command, _ []string) error {
		if *iface != "" {
			there, err := bpf.Remove(*pins, *iface)
			second, err2 := nft.Remove(*iface)
			if err = errors.Join(err, err2); err == nil && !there && !second {
				err = fmt.Errorf("take guard off: none is pinned for %s", *iface)
			}
			if err != nil {
				return err
			}
		} else if err := call().Do(cmd.Context(), "POST", "/guard/off", struct{}{}, nil); err != nil {
			return fmt.Errorf("%w (when the gateway does not run: yumen guard off --interface NAME)", err)
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "the guard is off 防护已关闭")
		return err
	}
	return off
}

func guardStatusCmd() *cobra.Command {
	c := &cobra.Command{Use: "status", Short: "Show the guard's state", Args: cobra.NoArgs}
	call := socketFlag(c)
	var format string
	outputFlag(c, &format)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		var s gateway.GuardStatus
		if err := call().Do(cmd.Context(), "GET", "/guard", nil, &s); err != nil {
			return err
		}
		return output(cmd.OutOrStdout(), format, s, func(w io.Writer) { printGuard(w, &s) })
	}
	return c
}

func printGuard(w io.Writer, s *gateway.GuardStatus) {
	state := "off 关闭"
	switch {
	case s.On && s.Pinned:
		state = "on 开启"
	case s.On:
		state = "on, to be confirmed 待确认 " + s.ConfirmBy.Local().Format(time.TimeOnly)
	case s.Lacks != "":
		state = "cannot run, admission is in user space 无法运行（用户态准入）: " + s.Lacks
	}
	fmt.Fprintf(w, "guard on %s: %s %s\n", s.Interface, state, s.Mode)
	fmt.Fprintf(w, "tier 防护层 %s", s.Tier)
	if s.TierWhy != "" && s.Lacks == "" {
		fmt.Fprintf(w, ", because 原因: %s", s.TierWhy)
	}
	fmt.Fprintln(w)
	fmt.Fprintf(w, "published %v · hidden %v · management %v\n", s.Published, s.Hidden, s.Management)
	fmt.Fprintf(w, "devices with tickets %d · denied networks %d · knocks opened %d, refused %d · drops %.0f/s\n", s.Devices, s.Denied, s.Opened, s.Refused, s.DropRate)
	if s.TicketsLost > 0 {
		fmt.Fprintf(w, "%d tickets found no room: raise guard.sizes.tickets\n", s.TicketsLost)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "PACKETS\tWHY\tCOUNT")
	for _, t := range []struct {
		name string
		m    map[string]uint64
	}{{"passed", s.Passed}, {"dropped", s.Dropped}} {
		for _, k := range slices.SortedFunc(maps.Keys(t.m), func(a, b string) int { return cmp.Or(cmp.Compare(t.m[b], t.m[a]), cmp.Compare(a, b)) }) {
			fmt.Fprintf(tw, "%s\t%s\t%d\n", t.name, k, t.m[k])
		}
	}
	tw.Flush()
}

// watched adds --watch, which shows again each second.
func watched(cmd *cobra.Command, show func(ctx context.Context, w io.Writer) error) {
	watch := cmd.Flags().BoolP("watch", "w", false, "show again each second until interrupted")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		for {
			if err := show(cmd.Context(), cmd.OutOrStdout()); err != nil || !*watch {
				return err
			}
			select {
			case <-cmd.Context().Done():
				return nil
			case <-time.After(time.Second):
			}
			fmt.Fprintln(cmd.OutOrStdout())
		}
	}
}

func guardTopCmd() *cobra.Command {
	c := &cobra.Command{Use: "top", Short: "Show the sources that most was dropped of in the last minute or two", Args: cobra.NoArgs}
	call := socketFlag(c)
	var format string
	outputFlag(c, &format)
	watched(c, func(ctx context.Context, w io.Writer) error {
		var all []gateway.GuardSource
		if err := call().Do(ctx, "GET", "/guard/top", nil, &all); err != nil {
			return err
		}
		return output(w, format, all, func(w io.Writer) {
			tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			fmt.Fprintln(tw, "SOURCE\tREASON\tDROPS")
			for _, s := range all {
				fmt.Fprintf(tw, "%s\t%s\t%d\n", s.Source, s.Reason, s.Drops)
			}
			tw.Flush()
		})
	})
	return c
}

func guardDropsCmd() *cobra.Command {
	c := &cobra.Command{Use: "drops", Short: "Show sampled packets that were dropped, the newest first", Args: cobra.NoArgs}
	call := socketFlag(c)
	var format string
	outputFlag(c, &format)
	watched(c, func(ctx context.Context, w io.Writer) error {
		var all []gateway.GuardDrop
		if err := call().Do(ctx, "GET", "/guard/drops", nil, &all); err != nil {
			return err
		}
		return output(w, format, all, func(w io.Writer) {
			tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			fmt.Fprintln(tw, "TIME\tSOURCE\tTO\tREASON\tSTANDS FOR")
			for _, d := range all {
				fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\n", d.Time.Local().Format("15:04:05.000"), d.Source, portName(d.Protocol, d.Port), d.Reason, d.Weight)
			}
			tw.Flush()
		})
	})
	return c
}

func portName(protocol uint8, port uint16) string {
	switch protocol {
	case 6:
		return fmt.Sprintf("tcp/%d", port)
	case 17:
		return fmt.Sprintf("udp/%d", port)
	}
	return fmt.Sprintf("protocol %d", protocol)
}
