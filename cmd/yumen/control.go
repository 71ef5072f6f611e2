//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/yumen-zt/yumen/control"
)

// controlCmd returns `yumen control` and its verbs.
func controlCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "control", Short: "Run and operate the reference control center 运行和管理控制中心",
		Long: `The control center enrols devices, keeps users, grants, policies and locks, and gives
gateways and agents what is theirs. Begin with:  yumen control init --dir DIR --url URL
控制中心登记设备，管理用户、授权、策略和锁定，并向网关和代理下发清单。`,
	}
	t := &controlTarget{}
	cmd.PersistentFlags().StringVarP(&t.file, "config", "c", os.Getenv("YUMEN_CONTROL_CONFIG"), "configuration file (also $YUMEN_CONTROL_CONFIG; default ./control.yaml)")
	cmd.PersistentFlags().StringVar(&t.socket, "socket", os.Getenv("YUMEN_CONTROL_SOCKET"), "admin socket of the running control center (also $YUMEN_CONTROL_SOCKET; default: the configuration's)")
	cmd.AddCommand(controlInitCmd(), controlRunCmd(t), controlStatusCmd(t), controlOutboxCmd(t), controlEventsCmd(t),
		controlUserCmd(t), controlDeviceCmd(t), controlAppCmd(t), controlGrantCmd(t), controlPolicyCmd(t), controlSubjectCmd(t),
		controlLockCmd(t), controlUnlockCmd(t), controlLocksCmd(t), controlSessionsCmd(t), controlSignOutCmd(t), controlChaosCmd(t))
	return cmd
}

// controlTarget is the control center that a verb speaks to.
type controlTarget struct{ file, socket string }

func (t *controlTarget) load() (control.Config, error) {
	file := t.file
	if file == "" {
		file = control.ConfigFile
		if _, err := os.Stat(file); err != nil {
			return control.Config{}, &usageError{errors.New("which control center? (give -c FILE, --socket PATH, or set YUMEN_CONTROL_CONFIG)")}
		}
	}
	return control.LoadConfig(file)
}

func (t *controlTarget) path() (string, error) {
	if t.socket != "" {
		return t.socket, nil
	}
	cfg, err := t.load()
	return cfg.Socket(), err
}

// do sends one verb.
func (t *controlTarget) do(ctx context.Context, method, path string, in, out any) error {
	socket, err := t.path()
	if err != nil {
		return err
	}
	return control.NewAdminClient(socket).Do(ctx, method, path, in, out)
}

func controlInitCmd() *cobra.Command {
	var c control.InitConfig
	cmd := &cobra.Command{
		Use: "init", Short: "Make a control center: authority, keys and configuration (初始化)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			file, err := control.Init(c)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is ready. Next:\n  yumen control run -c %s\n", file, file)
			return err
		},
	}
	cmd.Flags().StringVar(&c.Dir, "dir", "", "folder to make")
	cmd.Flags().StringVar(&c.URL, "url", "", "https URL that gateways and agents will use, for example https://control.example.com:8443")
	cmd.Flags().StringVar(&c.ID, "id", "CTL00000001", "identifier of the control center, 11 characters")
	cmd.Flags().StringSliceVar(&c.Hosts, "host", nil, "further names and addresses of the certificate")
	cmd.Flags().StringVar(&c.Issuer, "issuer", "", "https URL of the embedded OpenID provider (default: none)")
	cmd.Flags().StringVar(&c.Client, "redirect", "", "redirect URI of the provider's first client, a gateway's login host")
	for _, name := range []string{"dir", "url"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag was added above
		}
	}
	return cmd
}

func controlRunCmd(t *controlTarget) *cobra.Command {
	var verbose, show, chaos bool
	cmd := &cobra.Command{
		Use: "run", Short: "Run the control center in the foreground 前台运行控制中心", Args: cobra.NoArgs, Annotations: role,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := t.load()
			if err != nil {
				return err
			}
			if show {
				raw, err := yaml.Marshal(cfg.Defaults())
				if err == nil {
					_, err = cmd.OutOrStdout().Write(raw)
				}
				return err
			}
			zc := zap.NewProductionConfig()
			zc.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
			if verbose {
				zc.Level.SetLevel(zap.DebugLevel)
			}
			if cfg.Logger, err = zc.Build(); err != nil {
				return fmt.Errorf("make log: %w", err)
			}
			// The login's protocol library logs refused requests this way.
			level := slog.LevelError
			if verbose {
				level = slog.LevelWarn
			}
			slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
			cfg.AllowChaos = chaos
			s, err := control.New(cfg)
			if err != nil {
				return err
			}
			return s.Run(cmd.Context())
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "log each connection's fault")
	cmd.Flags().BoolVar(&chaos, "allow-chaos", false, "let operators make it misbehave on purpose (yumen control chaos): for tests and drills only")
	cmd.Flags().BoolVar(&show, "print-config", false, "print the configuration with every default, and end")
	return cmd
}

// controlTable prints rows under a header.
func controlTable(w io.Writer, header string, rows func(line func(cells ...any))) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ReplaceAll(header, " ", "\t"))
	rows(func(cells ...any) {
		for i, c := range cells {
			switch v := c.(type) {
			case time.Time:
				c = "-"
				if !v.IsZero() {
					c = v.Local().Format("2006-01-02 15:04:05")
				}
			case []string:
				c = strings.Join(v, ",")
			}
			if c == "" {
				c = "-"
			}
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, c)
		}
		fmt.Fprintln(tw)
	})
	tw.Flush()
}

// controlList returns a read verb: it prints what path answers, as a table or
// as JSON.
func controlList[T any](t *controlTarget, use, short, path, header string, row func(v T, line func(cells ...any))) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out []T
			if err := t.do(cmd.Context(), "GET", path, nil, &out); err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), format, out, func(w io.Writer) {
				controlTable(w, header, func(line func(...any)) {
					for _, v := range out {
						row(v, line)
					}
				})
			})
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

// controlRemove returns a verb that removes what its one argument names.
func controlRemove(t *controlTarget, use, short, path string) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var d control.Done
			if err := t.do(cmd.Context(), "DELETE", path+url.PathEscape(args[0]), nil, &d); err != nil {
				return err
			}
			return controlDone(cmd, format, d, "removed")
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

// controlDone says what a verb that changed something did.
func controlDone(cmd *cobra.Command, format string, d control.Done, what string) error {
	return output(cmd.OutOrStdout(), format, d, func(w io.Writer) { fmt.Fprintf(w, "%s %s (revision %d)\n", d.ID, what, d.Version) })
}

func controlStatusCmd(t *controlTarget) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "status", Short: "Show the control center and its gateways 控制中心状态", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s control.Status
			if err := t.do(cmd.Context(), "GET", "/v1/status", nil, &s); err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), format, s, func(w io.Writer) { printControlStatus(w, &s) })
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

func printControlStatus(w io.Writer, s *control.Status) {
	fmt.Fprintf(w, "control center %s, revision %d, grants %d, policies %d\n", s.ID, s.Revision, s.GrantsVersion, s.PoliciesVersion)
	fmt.Fprintf(w, "%d users, %d devices, %d apps, %d grants → %d rows, %d signed in, %d policies, %d locks\n",
		s.Users, s.Devices, s.Apps, s.Grants, s.Rows, s.Sessions, s.Policies, s.Locks)
	fmt.Fprintf(w, "%d messages, %d refused, %d repeats; %d deltas, %d lists, %d not modified, %d resyncs", s.Messages, s.Refused, s.Repeats, s.Deltas, s.Lists, s.NotModified, s.Resyncs)
	if s.AuditDropped > 0 {
		fmt.Fprintf(w, "; %d AUDIT RECORDS DROPPED", s.AuditDropped)
	}
	fmt.Fprintln(w)
	if len(s.Gateways) == 0 {
		return
	}
	controlTable(w, "GATEWAY LINK IDENTITY STATUS ACKED DELIVERY FROM", func(line func(...any)) {
		for _, g := range s.Gateways {
			link := "down"
			switch {
			case g.Connected:
				link = "up"
			case g.Identified:
				link = "pull"
			}
			age := func(at time.Time) string {
				if at.IsZero() {
					return "never"
				}
				return s.Time.Sub(at).Round(time.Second).String() + " ago"
			}
			acked := fmt.Sprint(g.GrantsAcked)
			if g.AckFault != "" {
				acked += " (" + g.AckFault + ")"
			}
			line(g.ID, link, age(g.LastIdentity), age(g.LastStatus), acked, g.LastDelivery.Round(time.Microsecond).String(), g.Remote)
		}
	})
}

func controlEventsCmd(t *controlTarget) *cobra.Command {
	return &cobra.Command{
		Use: "events", Short: "Watch audit records and alerts as they come, as JSON lines 实时查看审计与告警", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			socket, err := t.path()
			if err != nil {
				return err
			}
			hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			}}}
			defer hc.CloseIdleConnections()
			r, err := http.NewRequestWithContext(cmd.Context(), "GET", "http://local/v1/events", nil)
			if err != nil {
				return err
			}
			resp, err := hc.Do(r)
			if err != nil {
				return fmt.Errorf("watch events: %w (is the control center running, and are you its user?)", err)
			}
			defer resp.Body.Close()
			_, err = io.Copy(cmd.OutOrStdout(), resp.Body)
			if cmd.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
}
