//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/ctlclient"
)

// outboxCmd returns `yumen outbox`.
func outboxCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "outbox", Short: "Show and prove the reports that go to the control center (上报缓存)",
		Long: `Reports to the control center (alerts, identity, audit, status) wait on disk until it has
signed that it has them. The socket may be a gateway's or an agent's.
发往控制中心的报告先写入磁盘，直到控制中心签名确认收到。套接字可以是网关或代理的。`,
	}
	cmd.AddCommand(outboxStatusCmd(), outboxProveCmd())
	return cmd
}

func outboxStatusCmd() *cobra.Command {
	var format string
	cmd := &cobra.Command{Use: "status", Short: "Show what waits, by class (缓存状态)", Args: cobra.NoArgs}
	call := socketFlag(cmd)
	outputFlag(cmd, &format)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var s ctlclient.OutboxStatus
		if err := call().Do(cmd.Context(), "GET", "/outbox", nil, &s); err != nil {
			return err
		}
		return output(cmd.OutOrStdout(), format, s, func(w io.Writer) { printOutbox(w, &s, time.Now()) })
	}
	return cmd
}

func printOutbox(w io.Writer, s *ctlclient.OutboxStatus, now time.Time) {
	disk := "good"
	switch {
	case s.Memory:
		disk = "none: reports are in memory only"
	case s.Full:
		disk = "full: only alerts and identity are taken"
	case !s.Reserve:
		disk = "good, no reserve"
	}
	fmt.Fprintf(w, "outbox %s in %s · disk %s · %d faults, %d bad stretches since the start\n", s.ID, s.Dir, disk, s.Failed, s.Damaged)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "CLASS\tWAIT\tOLDEST\tBYTES\tFILES\tLAST\tACKED UP TO\tDROPPED")
	for _, c := range s.Classes {
		oldest := "-"
		if !c.Oldest.IsZero() {
			oldest = now.Sub(c.Oldest).Round(time.Second).String()
		}
		fmt.Fprintf(tw, "%s\t%d\t%s\t%d\t%d\t%d\t%d\t%d\n", c.Class, c.Pending, oldest, c.Bytes, c.Segments, c.Last, c.AckedTo, c.Dropped)
	}
	tw.Flush()
}

func outboxProveCmd() *cobra.Command {
	var format, class, dir, keys, pass string
	var from, to uint64
	cmd := &cobra.Command{
		Use: "prove", Short: "Prove that nothing is missing, or name each gap (完整性证明)", Args: cobra.NoArgs,
		Long: `Read every segment again, open each record, recompute the chain, and compare with the
acknowledgement that the control center signed. The exit code is 1 when something is missing.
With --dir the outbox of a process that does not run is read from its folder.`,
		Example: "  yumen outbox prove --class alert --from 1 --to 5000\n  yumen outbox prove --dir state/outbox --keys keys --passphrase-file passphrase",
	}
	call := socketFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&class, "class", "", "alert, identity, audit or status; default: all")
	f.Uint64Var(&from, "from", 1, "first number")
	f.Uint64Var(&to, "to", 0, "last number; default: the newest")
	f.StringVar(&dir, "dir", "", "read this folder instead of asking a running process")
	f.StringVar(&keys, "keys", "keys", "with --dir: key folder of its owner")
	f.StringVar(&pass, "passphrase-file", "passphrase", "with --dir: opens the keys")
	outputFlag(cmd, &format)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if class != "" {
			if _, err := ctlclient.ParseClass(class); err != nil {
				return &usageError{err}
			}
		}
		var proofs []*ctlclient.OutboxProof
		if dir != "" {
			secret, err := keystore.ReadPassphrase(pass)
			if err != nil {
				return err
			}
			store, err := keystore.Open(keys, secret)
			if err != nil {
				return err
			}
			if proofs, err = ctlclient.ProveFolder(store, dir, class, from, to); err != nil {
				return err
			}
		} else {
			q := url.Values{"class": {class}, "from": {strconv.FormatUint(from, 10)}, "to": {strconv.FormatUint(to, 10)}}
			if err := call().Do(cmd.Context(), "GET", "/outbox/prove?"+q.Encode(), nil, &proofs); err != nil {
				return err
			}
		}
		if err := output(cmd.OutOrStdout(), format, proofs, func(w io.Writer) { printProofs(w, proofs) }); err != nil {
			return err
		}
		for _, p := range proofs {
			if !p.Contiguous {
				return errors.New("prove outbox: something is missing or was altered")
			}
		}
		return nil
	}
	return cmd
}

func printProofs(w io.Writer, proofs []*ctlclient.OutboxProof) {
	for _, p := range proofs {
		if p.From > p.To {
			fmt.Fprintf(w, "%s: no records\n", p.Class)
			continue
		}
		word := "NOT contiguous (不连续)"
		if p.Contiguous {
			word = "contiguous (连续)"
		}
		fmt.Fprintf(w, "%s %d to %d: %s\n", p.Class, p.From, p.To, word)
		fmt.Fprintf(w, "  %d acknowledged, %d acknowledged but not chained, %d wait\n", p.Acknowledged, p.NotChained, p.Waiting)
		for _, g := range p.Gaps {
			fmt.Fprintf(w, "  gap %d to %d: %d records, %s, %s\n", g.From, g.To, g.Count, g.Reason, g.At.Format(time.RFC3339))
		}
		for _, r := range p.Unexplained {
			fmt.Fprintf(w, "  unexplained: %d to %d\n", r.From, r.To)
		}
		for _, f := range p.Faults {
			fmt.Fprintf(w, "  fault: %s: %s\n", f.File, f.What)
		}
		if e := p.Evidence; e != nil {
			sign := "its signature is good"
			if !p.Verified {
				sign = "its signature is NOT good: " + p.Why
			}
			fmt.Fprintf(w, "  evidence: %s signed up to %d, %s, chain %s; %s\n", e.Control, e.UpTo, e.At.Format(time.RFC3339), e.Head, sign)
			if v := e.Former; v != nil {
				fmt.Fprintf(w, "  before: outbox %s up to %d, %s, which this one does not continue\n", v.Outbox, v.UpTo, v.At.Format(time.RFC3339))
			}
		}
	}
}

// controlOutboxCmd returns `yumen control outbox`.
func controlOutboxCmd(t *controlTarget) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "outbox", Short: "Show how far each sender's reports have come, and what is lost 查看各方上报进度与缺口", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []control.OutboxPosition
			if err := t.do(cmd.Context(), "GET", "/v1/outbox", nil, &all); err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), format, all, func(w io.Writer) {
				tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(tw, "SENDER\tCLASS\tUP TO\tAHEAD\tLOST\tFORMER\tSEEN\tCHAIN")
				for _, p := range all {
					fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\n", p.Sender, p.Class, p.UpTo, p.Ahead, p.Lost, p.Former, p.Seen.Format(time.RFC3339), p.Head)
				}
				tw.Flush()
				for _, p := range all {
					for _, g := range p.Gaps {
						fmt.Fprintf(w, "gap of %s, %s %d to %d: %d records, %s, told %s\n", p.Sender, p.Class, g.From, g.To, g.Count, g.Reason, g.Told.Format(time.RFC3339))
					}
				}
			})
		},
	}
	outputFlag(cmd, &format)
	return cmd
}
