//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/gateway"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/internal/privilege"
)

// gatewayCmd returns `yumen gateway`.
func gatewayCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "gateway", Short: "Run the gateway (运行网关)"}
	var file string
	var takeOver bool
	run := &cobra.Command{
		Use: "run -c FILE", Short: "Run until interrupted; SIGHUP reloads the file", Args: cobra.NoArgs, Annotations: role,
		RunE: func(cmd *cobra.Command, _ []string) error { return runGateway(cmd.Context(), file, takeOver) },
	}
	configFlag(run, &file)
	run.Flags().BoolVar(&takeOver, "take-over", false, "take the sockets of the gateway that runs with this file, without losing a connection (升级：接管正在运行的网关)")
	reload := &cobra.Command{
		Use: "reload", Short: "Read the configuration again; on any error the old one stays", Args: cobra.NoArgs,
	}
	call := socketFlag(reload)
	reload.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := call().Do(cmd.Context(), "POST", "/reload", nil, nil); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "reloaded")
		return err
	}
	cmd.AddCommand(run, reload)
	return cmd
}

func runGateway(ctx context.Context, file string, takeOver bool) error {
	if os.Getenv("GOGC") == "" {
		// The live heap is a few MiB, so the usual pace collects often. A slower one
		// leaves more holes between what idle connections hold.
		debug.SetGCPercent(200)
	}
	// Before New: a signal that comes while keys are decrypted must not end us.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	g, err := gateway.New(ctx, file, gateway.Options{TakeOver: takeOver})
	if err != nil {
		return err
	}
	// Everything is bound and attached: from here on nothing needs a privilege.
	switch err := privilege.Drop(g.Privileges()); {
	case errors.Is(err, privilege.ErrUnsupported):
		fmt.Fprintf(os.Stderr, "yumen: privileges are kept: %v\n", err)
	case err != nil:
		return err // and the process ends
	}
	done := make(chan struct{})
	reloads := make(chan struct{})
	go func() {
		defer close(reloads)
		for {
			select {
			case <-done:
				return
			case <-hup:
				if err := g.Reload(); err != nil {
					fmt.Fprintf(os.Stderr, "reload refused, the old configuration stays in force:\n%v\n", err)
				}
			}
		}
	}()
	err = g.Run(ctx)
	close(done)
	<-reloads
	return err
}

// configFlag adds -c, which names a role's configuration file.
func configFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "config", "c", "", "configuration file")
	if err := cmd.MarkFlagRequired("config"); err != nil {
		panic(err) // the flag was added a line above
	}
}

// socketFlag adds --socket and returns a client of what it names.
func socketFlag(cmd *cobra.Command) func() *adminsock.Client {
	var path string
	cmd.Flags().StringVar(&path, "socket", envOr("YUMEN_GATEWAY_SOCKET", "state/admin.sock"), "the gateway's admin socket (also $YUMEN_GATEWAY_SOCKET)")
	return func() *adminsock.Client { return adminsock.NewClient(path) }
}

func envOr(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

// statusCmd returns `yumen status`.
func statusCmd() *cobra.Command {
	var format string
	cmd := &cobra.Command{Use: "status", Short: "Show the gateway's state on one screen (网关状态)", Args: cobra.NoArgs}
	call := socketFlag(cmd)
	outputFlag(cmd, &format)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var s gateway.Status
		if err := call().Do(cmd.Context(), "GET", "/status", nil, &s); err != nil {
			return err
		}
		return output(cmd.OutOrStdout(), format, s, func(w io.Writer) { printStatus(w, &s, time.Now()) })
	}
	return cmd
}

func printStatus(w io.Writer, s *gateway.Status, now time.Time) {
	age := func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return now.Sub(t).Round(time.Second).String() + " ago"
	}
	fmt.Fprintf(w, "gateway %s (device %s) · %s · yumen %s · up %s\n", s.GatewayID, s.DeviceID, s.Health, s.Version, now.Sub(s.Started).Round(time.Second))
	fmt.Fprintf(w, "listening %v · sessions %d · flows %d · tunnels %d · alerts %d\n", s.Listen, s.Access.Sessions, s.Access.Leases, s.Tunnels, s.Alerts)
	fmt.Fprintf(w, "crypto profile %s · sessions by protocol and suite %s\n", s.Profile, counts(s.Protocols))
	fmt.Fprintf(w, "grants version %d, %d rows (%d bad) · policies version %d, %d · locks %d · faults %d\n",
		s.Access.Version, s.Access.Rows, s.Access.BadRows, s.Access.PolicyVersion, s.Access.Policies, s.Access.Locks, s.Access.Faults)
	if c := s.Control; c != nil {
		state := "away"
		if c.Connected {
			state = "connected"
		}
		fmt.Fprintf(w, "control center %s by %s %s, push %v · contact %s · identity %s · status %s · pull %s\n", state, c.Protocol, c.Suite, c.Push, age(c.LastContact), age(c.LastIdentity), age(c.LastStatus), age(c.LastPull))
		if c.Unproved != "" {
			fmt.Fprintf(w, "nothing is granted before the control center answers: %s\n", c.Unproved)
		}
		if c.Refused+c.Differed > 0 {
			fmt.Fprintf(w, "lists refused %d · differences from the control center %d\n", c.Refused, c.Differed)
		}
		if c.OutboxFull {
			fmt.Fprintln(w, "outbox: the disk is full, only alerts and identity reports are kept")
		}
		for i, o := range c.Outbox {
			if o.Pending > 0 || o.Dropped > 0 {
				fmt.Fprintf(w, "outbox class %d: %d wait, %d dropped\n", i, o.Pending, o.Dropped)
			}
		}
		if c.LastError != "" && !c.Connected {
			fmt.Fprintf(w, "last error: %s\n", c.LastError)
		}
	} else {
		fmt.Fprintln(w, "lists come from files")
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "APPLICATION\tNAME\tSTATE\tLISTS\tREQUESTS\tRATE\tUPSTREAMS\tHOSTS")
	for _, a := range s.Apps {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\t%.1f/s\t%s\t%v\n", a.ID, a.Name, a.State, a.Freshness, a.InHand, a.Rate, upstreams(a.Upstreams), cmp.Or(strings.Join(a.Hosts, ", "), "-"))
	}
	tw.Flush()
	for _, a := range s.Apps {
		for _, u := range a.Upstreams {
			if u.State != "up" {
				fmt.Fprintf(w, "upstream %s of %s is %s %s\n", u.URL, a.ID, u.State, u.Cause)
			}
		}
	}
}

// upstreams says how many of all are in order.
func upstreams(all []apps.UpstreamState) string {
	up := 0
	for _, u := range all {
		if u.State == "up" {
			up++
		}
	}
	return fmt.Sprintf("%d/%d up", up, len(all))
}

// counts renders m in the order of its keys.
func counts(m map[string]int) string {
	if len(m) == 0 {
		return "none"
	}
	var all []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		all = append(all, fmt.Sprintf("%s: %d", k, m[k]))
	}
	return strings.Join(all, ", ")
}

// sessionsCmd returns `yumen sessions`.
func sessionsCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "sessions", Short: "List or cut live sessions (在线会话)"}
	var format string
	list := &cobra.Command{Use: "list", Short: "List live sessions and what flows in them", Args: cobra.NoArgs}
	callList := socketFlag(list)
	outputFlag(list, &format)
	list.RunE = func(cmd *cobra.Command, _ []string) error {
		var all []access.SessionInfo
		if err := callList().Do(cmd.Context(), "GET", "/sessions", nil, &all); err != nil {
			return err
		}
		return output(cmd.OutOrStdout(), format, all, func(w io.Writer) {
			tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			fmt.Fprintln(tw, "SESSION\tUSER\tDEVICE\tSINCE\tPROTOCOL\tSUITE\tFLOWS\tAPPLICATIONS")
			for _, s := range all {
				device := s.DeviceID
				if s.Browser {
					device = "browser"
				}
				fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%v\n", s.ID, s.UserID, device, s.Since.Format(time.DateTime), s.Protocol, s.Suite, s.Leases, counts(s.Apps))
			}
			tw.Flush()
		})
	}
	var req gateway.CutRequest
	cut := &cobra.Command{
		Use: "cut", Short: "Close sessions, or only their flows to one application", Args: cobra.NoArgs,
		Example: "  yumen sessions cut --user USR00000001\n  yumen sessions cut --user USR00000001 --app APP00000002",
		Long:    "Close what all given marks choose. A session that may begin anew begins anew: to keep somebody out, use yumen control lock.",
	}
	callCut := socketFlag(cut)
	for name, field := range map[string]*string{"session": &req.SessionID, "user": &req.UserID, "device": &req.DeviceID, "agent": &req.AgentID, "app": &req.AppID} {
		cut.Flags().StringVar(field, name, "", name+" to choose by")
	}
	outputFlag(cut, &format)
	cut.RunE = func(cmd *cobra.Command, _ []string) error {
		if req == (gateway.CutRequest{}) {
			return &usageError{errors.New("choose what to cut by --session, --user, --device, --agent or --app")}
		}
		var reply gateway.CutReply
		if err := callCut().Do(cmd.Context(), "POST", "/sessions/cut", req, &reply); err != nil {
			return err
		}
		return output(cmd.OutOrStdout(), format, reply, func(w io.Writer) {
			fmt.Fprintf(w, "%d flows cut in %s\n", reply.Flows, reply.Took.Round(time.Microsecond))
		})
	}
	cmd.AddCommand(list, cut)
	return cmd
}

// policyCmd returns `yumen policy`.
func policyCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Ask the gateway what it would decide, and why (策略解释)"}
	var req gateway.ExplainRequest
	var age time.Duration
	var posture, risk int
	var format string
	explain := &cobra.Command{
		Use: "explain --user U --app A", Short: "Show the decision for a subject and a request, step by step", Args: cobra.NoArgs,
		Example: "  yumen policy explain --user USR00000001 --app APP00000001 --remote 10.1.2.3 --method GET --path /admin",
	}
	call := socketFlag(explain)
	f := explain.Flags()
	f.StringVar(&req.UserID, "user", "", "userId")
	f.StringVar(&req.DeviceID, "device", "", "deviceId; default: a browser without a device")
	f.StringVar(&req.AppID, "app", "", "appId")
	f.StringVar(&req.Remote, "remote", "", "source address")
	f.StringVar(&req.Protocol, "protocol", "tls1.3", "tls1.2, tls1.3 or tlcp")
	f.StringVar(&req.Method, "method", "", "HTTP method; default: a TCP or UDP flow")
	f.StringVar(&req.Path, "path", "", "HTTP path")
	f.IntVar(&req.Level, "level", 0, "level of the sign-in")
	f.IntSliceVar(&req.Factors, "factors", nil, "authentication types of Table 17")
	f.DurationVar(&age, "auth-age", 0, "age of the sign-in")
	f.IntVar(&posture, "posture", -1, "posture of the device; default: not known")
	f.IntVar(&risk, "risk", -1, "risk; default: not known")
	outputFlag(explain, &format)
	for _, name := range []string{"user", "app"} {
		if err := explain.MarkFlagRequired(name); err != nil {
			panic(err) // the flags were added above
		}
	}
	explain.RunE = func(cmd *cobra.Command, _ []string) error {
		req.AuthAge = gateway.Duration(age)
		if posture >= 0 {
			req.Posture = &posture
		}
		if risk >= 0 {
			req.Risk = &risk
		}
		var reply gateway.ExplainReply
		if err := call().Do(cmd.Context(), "POST", "/explain", req, &reply); err != nil {
			return err
		}
		return output(cmd.OutOrStdout(), format, reply, func(w io.Writer) { fmt.Fprint(w, reply.Trace) })
	}
	cmd.AddCommand(explain)
	return cmd
}

// configCmd returns `yumen config`.
func configCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check a gateway's configuration file (检查配置)"}
	var file string
	check := &cobra.Command{
		Use: "check -c FILE", Short: "Name every fault of the file; nothing is started", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := gateway.Load(file)
			if err != nil {
				return err
			}
			for _, warning := range c.Warnings() {
				fmt.Fprintln(cmd.OutOrStdout(), "warning:", warning)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), file, "is good")
			return err
		},
	}
	configFlag(check, &file)
	cmd.AddCommand(check)
	return cmd
}
