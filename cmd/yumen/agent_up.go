package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/yumen-zt/yumen/agent"
)

const (
	upStart = 10 * time.Second // until a new agent answers
	upReady = 15 * time.Second // until it has a tunnel
	upPoll  = 50 * time.Millisecond
)

// agentUpCmd returns `yumen agent up`: from nothing to a tunnel in one verb.
func agentUpCmd(file *string, client clientFunc) *cobra.Command {
	var user, passwordFile, format string
	cmd := &cobra.Command{
		Use: "up", Short: "Start the agent in the background, sign in and wait for the tunnel 后台启动代理、登录并等待隧道就绪", Args: cobra.NoArgs,
		Long: `Start the agent in the background unless it runs, sign in unless somebody is signed in,
and wait until the tunnel is ready. The agent writes to agent.log beside its configuration.
后台启动代理（已运行则跳过）、登录（已登录则跳过），并等待隧道就绪。日志写入配置文件旁的 agent.log。`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := client()
			if err != nil {
				return err
			}
			defer c.Close()
			ctx := cmd.Context()
			s, err := c.Status(ctx)
			if err != nil {
				if s, err = startAgent(ctx, *file, c); err != nil {
					return err
				}
			}
			if s.State == agent.SignedOut {
				a, err := signIn(ctx, c, user, passwordFile)
				if err != nil {
					return err
				}
				if !a.OK {
					return errors.New(a.Words.String())
				}
			}
			if s, err = awaitAgent(ctx, c, upReady, func(s *agent.Status) bool { return s.State != agent.Connecting && s.State != agent.SignedOut }); err != nil {
				return err
			}
			if err := output(cmd.OutOrStdout(), format, s, func(w io.Writer) { printAgentStatus(w, s) }); err != nil {
				return err
			}
			if s.State != agent.Ready && s.State != agent.Degraded {
				return fmt.Errorf("no tunnel: %s (yumen agent status)", s.State.Words().EN)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&user, "user", "u", "", "name (at most 11 characters) or userId (default: who signed in last)")
	cmd.Flags().StringVar(&passwordFile, "password-file", "", "read the password from this file, mode 0600")
	outputFlag(cmd, &format)
	return cmd
}

// startAgent runs this program as an agent of its own and waits until it
// answers.
func startAgent(ctx context.Context, file string, c *agent.Client) (*agent.Status, error) {
	cfg, err := loadAgent(file)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	args := []string{"agent", "run"}
	if file != "" {
		if file, err = filepath.Abs(file); err != nil {
			return nil, fmt.Errorf("find configuration: %w", err)
		}
		args = append(args, "-c", file)
	}
	log := filepath.Join(cfg.Dir, "agent.log")
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	defer out.Close()
	run := exec.Command(self, args...) // not of ctx: it outlives this verb
	run.Stdout, run.Stderr, run.Dir, run.SysProcAttr = out, out, cfg.Dir, detached
	if err := run.Start(); err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = run.Wait() // its log says why
		close(ended)
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	s, err := awaitAgent(ctx, c, upStart, func(*agent.Status) bool { return true })
	if err != nil {
		return nil, fmt.Errorf("start agent: it does not answer (%s says why)%s", log, lastLine(log))
	}
	return s, nil
}

// awaitAgent asks for the status until it is as wanted; after limit it returns
// the last one.
func awaitAgent(ctx context.Context, c *agent.Client, limit time.Duration, ok func(*agent.Status) bool) (*agent.Status, error) {
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(upPoll)
	defer tick.Stop()
	for {
		s, err := c.Status(ctx)
		if err == nil && (ok(s) || time.Now().After(deadline)) {
			return s, nil
		}
		if time.Now().After(deadline) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

func lastLine(file string) string {
	b, err := os.ReadFile(file)
	b = bytes.TrimSpace(b)
	if err != nil || len(b) == 0 {
		return ""
	}
	return ": " + string(b[bytes.LastIndexByte(b, '\n')+1:])
}

// agentDownCmd returns `yumen agent down`.
func agentDownCmd(client clientFunc) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "down", Short: "Close the tunnel and every connection, and end the agent 关闭隧道和所有连接并退出代理", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := client()
			if err != nil {
				return err
			}
			defer c.Close()
			a, err := c.Stop(cmd.Context())
			if err != nil {
				return err
			}
			return answer(cmd.OutOrStdout(), format, a)
		},
	}
	outputFlag(cmd, &format)
	return cmd
}
