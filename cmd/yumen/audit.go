//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/yumen-zt/yumen/gateway"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/internal/audit"
)

// auditCmd returns `yumen audit`.
func auditCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "Read, prove, export and delete the gateway's audit records (审计记录)",
		Long: `The gateway keeps its audit records sealed, chained and signed once a minute. Who may read,
export or delete them stands in its configuration (audit.rights); each use, and each refusal,
is a record itself. With --config the store of a gateway is read from its folder, by its keys.
网关的审计记录加密存储、链式防篡改，并每分钟签名一次。读取、导出、删除权限分别由网关配置
（audit.rights）授予；每次使用或被拒绝都会产生审计记录。`,
	}
	cmd.AddCommand(auditShowCmd(), auditExportCmd(), auditVerifyCmd(), auditDeleteCmd())
	return cmd
}

// auditSource is where the verbs read from.
type auditSource struct {
	socket func() *adminsock.Client
	config string
}

func auditFlags(cmd *cobra.Command) *auditSource {
	s := &auditSource{socket: socketFlag(cmd)}
	cmd.Flags().StringVarP(&s.config, "config", "c", "", "read the folder of the gateway of this configuration, instead of asking it")
	return s
}

// copy writes the records chosen to w.
func (s *auditSource) copy(cmd *cobra.Command, path string, q url.Values, w io.Writer) error {
	if s.config == "" {
		return s.socket().Copy(cmd.Context(), path+"?"+q.Encode(), w)
	}
	sel, err := audit.ParseSelection(q.Get("since"), q.Get("until"), q.Get("last"))
	if err != nil {
		return &usageError{err}
	}
	store, _, err := gateway.AuditFolder(s.config)
	if err == nil {
		_, err = sel.Copy(w, store)
	}
	return err
}

func auditShowCmd() *cobra.Command {
	var last int
	cmd := &cobra.Command{Use: "show", Short: "Show the newest records, one line of JSON each (最新记录)", Args: cobra.NoArgs}
	from := auditFlags(cmd)
	cmd.Flags().IntVarP(&last, "last", "n", 50, "how many")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return from.copy(cmd, "/audit", url.Values{"last": {strconv.Itoa(last)}}, cmd.OutOrStdout())
	}
	return cmd
}

func auditExportCmd() *cobra.Command {
	var since, until, file string
	cmd := &cobra.Command{
		Use: "export", Short: "Write records as lines of JSON (导出)", Args: cobra.NoArgs,
		Example: "  yumen audit export --since 2026-01-01T00:00:00Z --until 2026-02-01T00:00:00Z -f january.jsonl",
	}
	from := auditFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&since, "since", "", "first time, RFC 3339; default: the oldest")
	f.StringVar(&until, "until", "", "end of time, RFC 3339; default: now")
	f.StringVarP(&file, "file", "f", "", "write to this new file, mode 0600; default: standard output")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		out := cmd.OutOrStdout()
		if file != "" {
			o, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return fmt.Errorf("export audit records: %w", err)
			}
			defer o.Close()
			out = o
		}
		return from.copy(cmd, "/audit/export", url.Values{"since": {since}, "until": {until}}, out)
	}
	return cmd
}

func auditVerifyCmd() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "verify", Short: "Prove that no record was changed or taken out (校验)", Args: cobra.NoArgs,
		Long: `Read every segment, open each frame, compute the chain over all of them and verify every
signed checkpoint. The exit code is 1 when something does not fit.`,
	}
	from := auditFlags(cmd)
	outputFlag(cmd, &format)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		p := new(audit.StoreProof)
		if from.config == "" {
			if err := from.socket().Do(cmd.Context(), http.MethodGet, "/audit/verify", nil, p); err != nil {
				return err
			}
		} else {
			store, verify, err := gateway.AuditFolder(from.config)
			if err != nil {
				return err
			}
			if p, err = store.Verify(verify); err != nil {
				return err
			}
		}
		if err := output(cmd.OutOrStdout(), format, p, func(w io.Writer) { printStoreProof(w, p) }); err != nil {
			return err
		}
		if !p.Whole {
			return errors.New("verify audit store: something was altered or is missing")
		}
		return nil
	}
	return cmd
}

func printStoreProof(w io.Writer, p *audit.StoreProof) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%d records from number %d, %s to %s, in %d segments\n", p.Records, p.From, p.Oldest.UTC().Format(time.RFC3339), p.Newest.UTC().Format(time.RFC3339), p.Segments)
	fmt.Fprintf(&b, "%d checkpoints verified, signed up to record %d · %d ends of a crash\n", p.Checkpoints, p.Signed, p.Torn)
	for _, f := range p.Faults {
		fmt.Fprintf(&b, "FAULT segment %s: %s\n", f.Segment, f.What)
	}
	if p.Whole {
		fmt.Fprintln(&b, "whole: nothing was altered or taken out 完整：未被篡改或删除")
	}
	_, _ = b.WriteTo(w)
}

func auditDeleteCmd() *cobra.Command {
	var before, format string
	cmd := &cobra.Command{
		Use: "delete", Short: "Delete records before their time, if you have the right (删除)", Args: cobra.NoArgs,
		Long: `Segments that hold nothing newer go; a record says which. Records go by themselves when they
are older than audit.keep_for.`,
	}
	call := socketFlag(cmd)
	cmd.Flags().StringVar(&before, "before", "", "everything older than this time, RFC 3339; required")
	outputFlag(cmd, &format)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if before == "" {
			return &usageError{errors.New("give --before TIME")}
		}
		var d gateway.AuditDeleted
		if err := call().Do(cmd.Context(), http.MethodPost, "/audit/delete?"+url.Values{"before": {before}}.Encode(), nil, &d); err != nil {
			return err
		}
		return output(cmd.OutOrStdout(), format, d, func(w io.Writer) { fmt.Fprintf(w, "%d segments deleted\n", d.Segments) })
	}
	return cmd
}
