package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/yumen-zt/yumen/agent"
	"github.com/yumen-zt/yumen/agent/prompt"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/wire"
)

// agentCmd returns `yumen agent` and its verbs.
func agentCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "agent", Short: "Run and ask the agent 运行和查询代理",
		Long: `The agent gives the user who runs it a way to the applications that were granted:
a SOCKS5 proxy, an HTTP CONNECT proxy and port forwards on loopback. It needs no root.
代理为运行它的用户提供访问已授权应用的通道，无需管理员权限。`,
	}
	var file, socket string
	cmd.PersistentFlags().StringVarP(&file, "config", "c", "", "configuration file (default ~/.yumen/agent.yaml)")
	cmd.PersistentFlags().StringVar(&socket, "socket", "", "socket of the running agent (default: the configuration's)")
	client := func() (*agent.Client, error) {
		if socket != "" {
			return agent.NewClient(socket), nil
		}
		cfg, err := loadAgent(file)
		if err != nil {
			return nil, err
		}
		return agent.NewClient(cfg.Socket), nil
	}
	cmd.AddCommand(agentRunCmd(&file), agentUpCmd(&file, client), agentDownCmd(client), agentLoginCmd(client), agentLogoutCmd(client), agentStatusCmd(client), agentResourcesCmd(client), agentWhyCmd(client))
	return cmd
}

func loadAgent(file string) (agent.Config, error) {
	if file == "" {
		dir, err := homeFolder()
		if err != nil {
			return agent.Config{}, err
		}
		file = filepath.Join(dir, "agent.yaml")
	}
	return agent.Load(file)
}

// homeFolder returns where a person's agent lives unless told otherwise.
func homeFolder() (string, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find home folder: %w (name the configuration by -c)", err)
	}
	return filepath.Join(home, ".yumen"), nil
}

func agentRunCmd(file *string) *cobra.Command {
	var verbose bool
	cmd := &cobra.Command{
		Use: "run", Short: "Run the agent in the foreground 前台运行代理", Args: cobra.NoArgs, Annotations: role,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadAgent(*file)
			if err != nil {
				return err
			}
			zc := zap.NewProductionConfig()
			zc.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
			if verbose {
				zc.Level.SetLevel(zap.DebugLevel)
			}
			log, err := zc.Build()
			if err != nil {
				return fmt.Errorf("make log: %w", err)
			}
			cfg.Logger = log
			a, err := agent.New(cfg)
			if err != nil {
				return err
			}
			return a.Run(cmd.Context())
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "log each flow")
	return cmd
}

type clientFunc func() (*agent.Client, error)

func agentLoginCmd(client clientFunc) *cobra.Command {
	var user, passwordFile, format string
	cmd := &cobra.Command{
		Use: "login", Short: "Sign in 登录", Args: cobra.NoArgs,
		Long: `Sign in at the control center. The password is asked for at the terminal, or read from
a file that only its owner can read; it is sent once and stored nowhere.
登录控制中心。口令在终端输入，或从仅属主可读的文件读取；只发送一次，不作保存。`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := client()
			if err != nil {
				return err
			}
			defer c.Close()
			a, err := signIn(cmd.Context(), c, user, passwordFile)
			if err != nil {
				return err
			}
			return answer(cmd.OutOrStdout(), format, a)
		},
	}
	cmd.Flags().StringVarP(&user, "user", "u", "", "name (at most 11 characters) or userId (default: who signed in last)")
	cmd.Flags().StringVar(&passwordFile, "password-file", "", "read the password from this file, mode 0600")
	outputFlag(cmd, &format)
	return cmd
}

// signIn signs user in, or who signed in last.
func signIn(ctx context.Context, c *agent.Client, user, passwordFile string) (*agent.Answer, error) {
	if user == "" {
		s, err := c.Status(ctx)
		if err != nil {
			return nil, err
		}
		if user = s.LastUser; user == "" {
			return nil, &usageError{errors.New("who signs in? use --user")}
		}
	}
	password, err := secret(ctx, passwordFile, fmt.Sprintf("Password of %s (口令): ", user))
	if err != nil {
		return nil, err
	}
	return c.Login(ctx, agent.LoginRequest{UserID: user, Factors: []wire.Factor{{AuthenticationType: 1, AuthenticationContent: password}}}) // Table 17: 1 static password
}

// secret reads from file, or asks at the terminal.
func secret(ctx context.Context, file, question string) (string, error) {
	if file != "" {
		b, err := keystore.ReadPassphrase(file)
		return string(b), err
	}
	s, err := prompt.Secret(ctx, question)
	if errors.Is(err, prompt.ErrNoTerminal) {
		return "", fmt.Errorf("%w (use --password-file)", err)
	}
	if err == nil && s == "" {
		return "", errors.New("nothing was typed")
	}
	return s, err
}

// answer shows what a verb that does something got; a refusal is an error.
func answer(w io.Writer, format string, a *agent.Answer) error {
	if !a.OK && format == "text" {
		return errors.New(a.Words.String())
	}
	if err := output(w, format, a, func(w io.Writer) { fmt.Fprintln(w, a.Words) }); err != nil {
		return err
	}
	if !a.OK {
		return errors.New(a.EN)
	}
	return nil
}

func agentLogoutCmd(client clientFunc) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "logout", Short: "Sign out, close the tunnel and every connection 退出登录", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := client()
			if err != nil {
				return err
			}
			defer c.Close()
			a, err := c.Logout(cmd.Context())
			if err != nil {
				return err
			}
			return answer(cmd.OutOrStdout(), format, a)
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

func agentStatusCmd(client clientFunc) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "status", Short: "Show the session, the tunnel and what was refused 显示会话、隧道和拒绝记录", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := client()
			if err != nil {
				return err
			}
			defer c.Close()
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), format, s, func(w io.Writer) { printAgentStatus(w, s) })
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

func printAgentStatus(w io.Writer, s *agent.Status) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	words := s.State.Words()
	line("state 状态", "%s · %s", words.EN, words.ZH)
	if s.Lock != nil {
		line("locked 锁定", "since %s  %s", s.Lock.Since.Local().Format("2006-01-02 15:04:05"), s.Lock.Message)
	}
	line("agent 代理", "%s on %s", s.AgentID, s.DeviceID)
	if s.UserID != "" {
		line("user 用户", "%s", s.UserID)
	}
	if s.Expires != nil {
		line("token until 令牌有效期", "%s", s.Expires.Local().Format("2006-01-02 15:04:05"))
	}
	if s.Gateway != "" {
		line("gateway 网关", "%s at %s since %s", s.Gateway, s.GatewayAddr, s.Since.Local().Format("15:04:05"))
		several := ""
		if s.Connections > 0 {
			several = fmt.Sprintf(", %d connections 条连接", s.Connections)
		}
		line("carrier 承载", "%s %s (%s)%s", s.Carrier, s.Suite, s.CarrierWhy, several)
	}
	if s.Fault != "" {
		line("tunnel 隧道", "%s", s.Fault)
	}
	switch {
	case s.ControlFault != "" && !s.ControlConnected:
		line("control 控制中心", "%s", s.ControlFault)
	case s.ControlConnected:
		line("control 控制中心", "%s %s", s.ControlProtocol, s.ControlSuite)
	}
	line("resources 资源", "%d", s.Resources)
	line("connections 连接", "%d (%d opened, %d refused)", s.Flows, s.Opened, s.Refused)
	line("posture 本机状态", "%s %s, disk encrypted 磁盘加密 %s, firewall 防火墙 %s", cmp.Or(s.Posture.Name, s.Posture.OS), s.Posture.Arch, s.Posture.DiskEncrypted, s.Posture.Firewall)
	for _, f := range s.Faces {
		line("face 入口", "%s %s", f.Kind, f.Addr)
	}
	t.Flush()
	for i, n := range s.Notices {
		if i == 10 {
			fmt.Fprintf(w, "... %d more (-o json)\n", len(s.Notices)-i)
			break
		}
		fmt.Fprintf(w, "%s  level %d  %s %s\n", n.Time.Local().Format("15:04:05"), n.Level, n.AppID, n.Target)
		for _, text := range []string{n.EN, n.ZH, n.Content} {
			if text != "" {
				fmt.Fprintf(w, "    %s\n", text)
			}
		}
	}
}

func agentResourcesCmd(client clientFunc) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "resources", Short: "List what may be reached now 列出当前可访问的资源", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := client()
			if err != nil {
				return err
			}
			defer c.Close()
			rs, err := c.Resources(cmd.Context())
			if err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), format, rs, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				for _, r := range rs {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", r.AppID, r.Protocol, r.Addr, strings.Join(r.Hosts, ","), r.AppName)
				}
				t.Flush()
			})
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

func agentWhyCmd(client clientFunc) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "why APP", Short: "Ask the gateway whether an application may be reached, and why not 查询能否访问某应用及原因", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := client()
			if err != nil {
				return err
			}
			defer c.Close()
			y, err := c.Why(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := output(cmd.OutOrStdout(), format, y, func(w io.Writer) {
				fmt.Fprintln(w, y.Words)
				if y.Last != nil {
					fmt.Fprintf(w, "last %s: %s\n最近 %[1]s：%[3]s\n", y.Last.Time.Local().Format("2006-01-02 15:04:05"), y.Last.EN, y.Last.ZH)
				}
			}); err != nil {
				return err
			}
			if !y.Allowed {
				return fmt.Errorf("%s cannot be reached (%s)", y.AppID, y.Reason)
			}
			return nil
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

// enrolled is what `yumen enroll -o json` prints.
type enrolled struct {
	Kind      string `json:"kind"`
	ID        string `json:"id"`
	DeviceID  string `json:"deviceId,omitempty"`
	ControlID string `json:"controlId"`
	URL       string `json:"url"`
	Keys      string `json:"keys"`
	Config    string `json:"config,omitempty"`
}

// enrollCmd returns `yumen enroll`.
func enrollCmd() *cobra.Command {
	var dir, passphraseFile, name, format string
	cmd := &cobra.Command{
		Use: "enroll CODE", Short: "Enrol this machine with a one-time code 使用一次性登记码登记本机",
		Long: `Enrol an agent, a gateway or an application. The keys are made here and never leave;
the code names the control center and the root that it must show. With "-" the code is
read from standard input, so that it does not stand in the list of processes.
登记代理、网关或应用。密钥在本机生成且不会离开本机；登记码为 "-" 时从标准输入读取。`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			code := args[0]
			if code == "-" {
				line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 64<<10)).ReadString('\n')
				if err != nil && !errors.Is(err, io.EOF) {
					return fmt.Errorf("read enrolment code: %w", err)
				}
				code = line
			}
			if dir == "" {
				home, err := homeFolder()
				if err != nil {
					return err
				}
				dir = home
			}
			e, err := enrol(cmd.Context(), code, dir, passphraseFile, name)
			if err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), format, e, func(w io.Writer) {
				fmt.Fprintf(w, "enrolled %s %s, keys in %s\n已登记 %[1]s %[2]s，密钥位于 %[3]s\n", e.Kind, e.ID, e.Keys)
				if e.Config != "" {
					fmt.Fprintf(w, "next 下一步:\n  yumen agent run -c %[1]s\n  yumen agent login -c %[1]s\n", e.Config)
				}
			})
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder to make (default ~/.yumen)")
	cmd.Flags().StringVar(&passphraseFile, "passphrase-file", "", "opens the keys, mode 0600 (default: DIR/passphrase, made when it is not there)")
	cmd.Flags().StringVar(&name, "name", "", "device name (default: the host name)")
	outputFlag(cmd, &format)
	return cmd
}

func enrol(ctx context.Context, code, dir, passphraseFile, name string) (*enrolled, error) {
	if _, err := wire.ParseEnrolCode(code); err != nil {
		return nil, err // before anything is written
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	if passphraseFile == "" {
		passphraseFile = filepath.Join(dir, "passphrase")
		if err := makePassphrase(passphraseFile); err != nil {
			return nil, err
		}
	}
	pass, err := keystore.ReadPassphrase(passphraseFile)
	if err != nil {
		return nil, err
	}
	keys := filepath.Join(dir, "keys")
	got, err := ctlclient.Enrol(ctx, ctlclient.EnrolConfig{Code: code, Dir: keys, Passphrase: pass, DeviceName: name})
	if err != nil {
		return nil, err
	}
	e := &enrolled{Kind: got.Kind, ID: got.ID, DeviceID: got.DeviceID, ControlID: got.ControlID, URL: got.URL, Keys: keys}
	if got.Kind == wire.EnrolAgent {
		e.Config = filepath.Join(dir, "agent.yaml")
		err = writeAgentConfig(e.Config, got.URL, passphraseFile)
	}
	return e, err
}

// makePassphrase writes a random passphrase unless the file exists.
func makePassphrase(file string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make passphrase: %w", err)
	}
	_, err = io.WriteString(f, rand.Text()+"\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("make passphrase: %w", err)
	}
	return nil
}

// writeAgentConfig writes a configuration that runs as it is; one that exists
// is left alone but must name the control center already.
func writeAgentConfig(file, url, passphraseFile string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		c, err := agent.Load(file)
		if err == nil && c.Control != url {
			err = fmt.Errorf("it names %s, not %s", c.Control, url)
		}
		if err != nil {
			return fmt.Errorf("keep configuration %s: %w (correct it, or remove it and write control: %s)", file, err, url)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	_, err = fmt.Fprintf(f, `control: %q
passphrase_file: %q
socks5: ["127.0.0.1:1080"]
# http_connect: ["127.0.0.1:8118"]
# status_page: 127.0.0.1:8117
# forwards:
#   - {listen: "127.0.0.1:15432", app: APP00000001}
`, url, passphraseFile)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}
