//go:build linux

package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/control/model"
)

func controlGroup(use, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short}
	cmd.AddCommand(verbs...)
	return cmd
}

func controlUserCmd(t *controlTarget) *cobra.Command {
	var file, format string
	var in control.NewUser
	add := &cobra.Command{
		Use: "add NAME", Short: "Add a user; the password is asked for 添加用户", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if in.Password, err = secret(cmd.Context(), file, "Password 口令: "); err != nil {
				return err
			}
			in.Name = args[0]
			var d control.Done
			if err := t.do(cmd.Context(), "POST", "/v1/users", in, &d); err != nil {
				return err
			}
			return controlDone(cmd, format, d, "added")
		},
	}
	add.Flags().StringVar(&in.Display, "display", "", "full name")
	add.Flags().StringVar(&in.ID, "id", "", "userId, 11 characters (default: the next one)")
	add.Flags().StringVar(&file, "password-file", "", "0600 file with the password")
	outputFlag(add, &format)

	passwd := &cobra.Command{
		Use: "passwd USER", Short: "Set a user's password; it ends where the user is signed in 重置口令", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			password, err := secret(cmd.Context(), file, "New password 新口令: ")
			if err != nil {
				return err
			}
			var d control.Done
			if err := t.do(cmd.Context(), "PUT", "/v1/users/"+url.PathEscape(args[0])+"/password", map[string]string{"password": password}, &d); err != nil {
				return err
			}
			return controlDone(cmd, format, d, "has a new password")
		},
	}
	passwd.Flags().StringVar(&file, "password-file", "", "0600 file with the password")
	outputFlag(passwd, &format)

	return controlGroup("user", "Local users 本地用户", add, passwd,
		controlList(t, "list", "List users", "/v1/users", "ID NAME FULL-NAME LOCKED SIGNED-IN-ON", func(u control.UserInfo, line func(...any)) {
			locked := "no"
			switch {
			case u.Locked:
				locked = "yes"
			case !u.LockedOut.IsZero():
				locked = "wrong passwords, until " + u.LockedOut.Local().Format("15:04:05")
			}
			line(u.ID, u.Name, u.Display, locked, u.Devices)
		}),
		controlRemove(t, "remove USER", "Remove a user with the grants; it cuts at once 删除用户", "/v1/users/"))
}

func controlDeviceCmd(t *controlTarget) *cobra.Command {
	var in control.NewDevice
	var format string
	showCode := func(cmd *cobra.Command, n *control.NewCode) error {
		return output(cmd.OutOrStdout(), format, n, func(w io.Writer) {
			fmt.Fprintf(w, "%s", n.ID)
			if n.DeviceID != "" {
				fmt.Fprintf(w, " on %s", n.DeviceID)
			}
			fmt.Fprintf(w, ". Enrol it once, before %s, with:\n\n  yumen enroll %s\n", n.Until.Local().Format("15:04:05"), n.Code)
		})
	}
	add := &cobra.Command{
		Use: "add gateway|agent|app", Short: "Add a device and print its one-time enrolment code 添加设备并生成登记码", Args: cobra.ExactArgs(1),
		ValidArgs: []string{"gateway", "agent", "app"},
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Kind = args[0]
			var n control.NewCode
			if err := t.do(cmd.Context(), "POST", "/v1/devices", in, &n); err != nil {
				return err
			}
			return showCode(cmd, &n)
		},
	}
	add.Flags().StringVar(&in.ID, "id", "", "identifier, 11 characters (default: the next one; for an app: the application's)")
	add.Flags().StringVar(&in.Name, "name", "", "name for people")
	add.Flags().StringVar(&in.User, "user", "", "only this user may use it (agent)")
	add.Flags().StringSliceVar(&in.Addresses, "address", nil, "host:port that agents dial (gateway)")
	outputFlag(add, &format)
	code := &cobra.Command{
		Use: "code DEVICE", Short: "Make a new enrolment code 生成新的登记码", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var n control.NewCode
			if err := t.do(cmd.Context(), "POST", "/v1/devices/"+url.PathEscape(args[0])+"/code", nil, &n); err != nil {
				return err
			}
			return showCode(cmd, &n)
		},
	}
	outputFlag(code, &format)
	var posture, risk int
	facts := &cobra.Command{
		Use: "facts DEVICE", Short: "Set what is known of a device: posture and risk 设置设备状态", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var f control.Facts
			if cmd.Flags().Changed("posture") {
				f.Posture = &posture
			}
			if cmd.Flags().Changed("risk") {
				f.Risk = &risk
			}
			var d control.Done
			if err := t.do(cmd.Context(), "PUT", "/v1/devices/"+url.PathEscape(args[0])+"/facts", f, &d); err != nil {
				return err
			}
			return controlDone(cmd, format, d, "has new facts")
		},
	}
	facts.Flags().IntVar(&posture, "posture", 0, "0 to 100, high is good (absent: unknown)")
	facts.Flags().IntVar(&risk, "risk", 0, "0 to 100, high is bad (absent: unknown)")
	outputFlag(facts, &format)
	address := &cobra.Command{
		Use: "address GATEWAY HOST:PORT[,...]", Short: "Change where agents dial a gateway 修改网关地址", Args: cobra.MinimumNArgs(2),
		Long: `Change where agents dial a gateway; agents learn it within a minute. The names in the
gateway's enrolled certificate follow when it enrols again (yumen control device code).
修改代理连接网关的地址，代理在一分钟内获知；网关证书中的名称在重新登记后更新。`,
		RunE: func(cmd *cobra.Command, args []string) error {
			in := control.Addresses{Addresses: strings.Split(strings.Join(args[1:], ","), ",")}
			var d control.Done
			if err := t.do(cmd.Context(), "PUT", "/v1/devices/"+url.PathEscape(args[0])+"/addresses", in, &d); err != nil {
				return err
			}
			return controlDone(cmd, format, d, "is dialed at "+strings.Join(in.Addresses, ", "))
		},
	}
	outputFlag(address, &format)
	return controlGroup("device", "Gateways, agents and applications' connectors 设备", add, code, address, facts,
		controlList(t, "list", "List devices", "/v1/devices", "KIND ID DEVICE NAME USER ENROLLED LOCKED ADDRESSES", func(d control.DeviceInfo, line func(...any)) {
			enrolled := d.Enrolled.Local().Format("2006-01-02 15:04")
			if d.Enrolled.IsZero() {
				enrolled = "code until " + d.CodeUntil.Local().Format("15:04:05")
			}
			locked := "no"
			if d.Locked {
				locked = "yes"
			}
			line(d.Kind, d.ID, d.DeviceID, d.Name, d.UserID, enrolled, locked, d.Addresses)
		}),
		controlRemove(t, "remove DEVICE", "Remove a device; its certificates open nothing from then on 删除设备", "/v1/devices/"))
}

func controlAppCmd(t *controlTarget) *cobra.Command {
	var in model.App
	var format string
	add := &cobra.Command{
		Use: "add NAME", Short: "Register an application 登记应用", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Name = args[0]
			var d control.Done
			if err := t.do(cmd.Context(), "POST", "/v1/apps", in, &d); err != nil {
				return err
			}
			return controlDone(cmd, format, d, "added")
		},
	}
	add.Flags().StringVar(&in.ID, "id", "", "appId, 11 characters, as in the gateway's configuration (default: the next one)")
	add.Flags().StringSliceVar(&in.Addresses, "address", nil, "IP:port that agents reach through the tunnel")
	add.Flags().StringSliceVar(&in.Hosts, "host", nil, "names that agents map to it")
	add.Flags().StringVar(&in.Protocol, "protocol", "tcp", "tcp or udp")
	outputFlag(add, &format)
	return controlGroup("app", "Applications 应用", add,
		controlList(t, "list", "List applications", "/v1/apps", "ID NAME PROTOCOL ADDRESSES HOSTS", func(a model.App, line func(...any)) {
			line(a.ID, a.Name, a.Protocol, a.Addresses, a.Hosts)
		}),
		controlRemove(t, "remove APP", "Remove an application; it is granted to nobody from then on 删除应用", "/v1/apps/"))
}

func controlGrantCmd(t *controlTarget) *cobra.Command {
	var in control.NewGrant
	var until, format string
	add := &cobra.Command{
		Use: "add USER APP...", Short: "Grant applications to a user 授权", Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			in.User, in.Apps = args[0], args[1:]
			if in.Until, err = whenArg(until, time.Now()); err != nil {
				return err
			}
			var d control.Done
			if err := t.do(cmd.Context(), "POST", "/v1/grants", in, &d); err != nil {
				return err
			}
			return controlDone(cmd, format, d, "granted")
		},
	}
	add.Flags().StringVar(&in.Device, "device", model.AnyDevice, "a device, any (each device on which the user signs in) or browser")
	add.Flags().StringVar(&until, "until", "", "end: 8h, 2026-12-31 or 2026-12-31T18:00:00Z (default: none)")
	outputFlag(add, &format)
	return controlGroup("grant", "Grants of applications to users 授权", add,
		controlList(t, "list", "List grants", "/v1/grants", "ID USER DEVICE APPS UNTIL", func(g model.Grant, line func(...any)) {
			line(g.ID, g.UserID, g.Device, g.Apps, g.Until)
		}),
		controlRemove(t, "remove GRANT", "Take a grant away; it cuts at once 收回授权", "/v1/grants/"))
}

func controlPolicyCmd(t *controlTarget) *cobra.Command {
	var in control.NewPolicy
	var format string
	add := &cobra.Command{
		Use: "add TYPE DATA", Short: "Add a policy of Table 9 添加策略", Args: cobra.MinimumNArgs(2),
		Example: "  yumen control policy add ipallow 10.0.0.0/8 --name office --scope APP00000001\n  yumen control policy add authage 15m --scope alice/APP00000001,USR00000002/*",
		RunE: func(cmd *cobra.Command, args []string) error {
			in.PolicyType, in.PolicyData = args[0], strings.Join(args[1:], " ")
			if in.PolicyName == "" {
				in.PolicyName = in.PolicyType
			}
			var d control.Done
			if err := t.do(cmd.Context(), "POST", "/v1/policies", in, &d); err != nil {
				return err
			}
			return controlDone(cmd, format, d, "in force")
		},
	}
	add.Flags().StringVar(&in.PolicyName, "name", "", "name for people (default: the type)")
	add.Flags().StringVar(&in.Scope, "scope", "", "what it restricts: APP, USER/APP, USER/* or *, commas between (default: everything)")
	add.Flags().StringVar(&in.PolicyID, "id", "", "policyId, 11 characters (default: the next one)")
	outputFlag(add, &format)
	return controlGroup("policy", "Policies 策略", add,
		controlList(t, "list", "List policies", "/v1/policies", "ID TYPE DATA SCOPE NAME", func(p control.PolicyInfo, line func(...any)) {
			scope := p.Scope
			if scope == "" && p.PolicyType != "bind" {
				scope = "everything"
			}
			line(p.PolicyID, p.PolicyType, p.PolicyData, scope, p.PolicyName)
		}),
		controlRemove(t, "remove POLICY", "Remove a policy and its scope 删除策略", "/v1/policies/"))
}

func controlSubjectCmd(t *controlTarget) *cobra.Command {
	var format string
	add := &cobra.Command{
		Use: "add ISSUER SUBJECT USER", Short: "Map an identity provider's account to a user 关联外部账号", Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			var d control.Done
			if err := t.do(cmd.Context(), "POST", "/v1/subjects", map[string]string{"issuer": args[0], "subject": args[1], "user_id": args[2]}, &d); err != nil {
				return err
			}
			return controlDone(cmd, format, d, "mapped")
		},
	}
	outputFlag(add, &format)
	return controlGroup("subject", "Accounts of outside identity providers 外部账号", add,
		controlList(t, "list", "List mapped accounts", "/v1/subjects", "KEY ISSUER SUBJECT USER", func(s control.SubjectInfo, line func(...any)) {
			line(s.Key, s.Issuer, s.Subject.Subject, s.UserID)
		}),
		controlRemove(t, "remove KEY", "Remove a mapping 取消关联", "/v1/subjects/"))
}

// whenArg reads a point in time: a duration from now, a day (its end) or a
// time.
func whenArg(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return now.Add(d), nil
	}
	if day, err := time.ParseInLocation("2006-01-02", s, time.Local); err == nil {
		return day.AddDate(0, 0, 1), nil
	}
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at, nil
	}
	return time.Time{}, &usageError{fmt.Errorf("time %q: write 8h, 2026-12-31 or 2026-12-31T18:00:00Z", s)}
}
