package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/agent"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/wire"
)

// agentLink is a control center that knows one user and one password.
type agentLink struct{}

func (agentLink) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (agentLink) Login(_ context.Context, user string, _ int, fs []wire.Factor) (ctlclient.Token, error) {
	if len(fs) != 1 || fs[0].AuthenticationContent != "correct horse" {
		return ctlclient.Token{}, &ctlclient.RefusedError{Table: 18, Reason: reason.LoginFailed, Result: reason.LoginFailed.Result()}
	}
	return ctlclient.Token{UserID: user, AuthToken: "aaaaaaaaaa1", Expires: time.Now().Add(time.Hour)}, nil
}

func (agentLink) Logout() {}

func (agentLink) FetchResources(context.Context) (*ctlclient.Resources, error) {
	return &ctlclient.Resources{
		List: wire.ResourceList{AgentID: "AGT00000001", DeviceID: "DEV00000001", UserID: "USR00000001", ResourceList: []wire.Resource{
			{AppID: "APP00000001", AppName: "订单 orders", IP: "10.0.0.5", Port: 443},
		}},
		Gateways: []wire.GatewayRef{{ID: "GW000000001", Addresses: []string{"gw:443"}}},
	}, nil
}

func (agentLink) ReportNow()                                        {}
func (agentLink) Raise(alert.Alert)                                 {}
func (agentLink) SendAlert(context.Context, *wire.AgentAlert) error { return nil }
func (agentLink) Status() ctlclient.AgentStatus                     { return ctlclient.AgentStatus{Connected: true} }

// agentTunnel refuses each flow.
type agentTunnel struct{ done chan struct{} }

func (t agentTunnel) Dial(context.Context, wire.GatewayRef, string, wire.TunnelHello, func(*wire.Notice)) (agent.Tunnel, error) {
	return agentTunnel{make(chan struct{})}, nil
}

func (agentTunnel) Open(context.Context, string, *wire.AccessRequest) (net.Conn, error) {
	return nil, &carrier.RefusedError{Reason: reason.PolicyTime, Result: reason.PolicyTime.Result() + " (outside 08:00-20:00, policy POL00000007)"}
}
func (agentTunnel) Carrier() channel.State                     { return channel.State{} }
func (agentTunnel) Renew(context.Context, *wire.Renewal) error { return nil }
func (t agentTunnel) Done() <-chan struct{}                    { return t.done }
func (agentTunnel) Err() error                                 { return nil }
func (agentTunnel) Close() error                               { return nil }

type noSignature struct{}

func (noSignature) Sign([]byte) ([]byte, error) { return []byte("test"), nil }
func (noSignature) Verify(_, sig []byte) bool   { return string(sig) == "test" }

// agentVerb runs one verb and returns what it printed.
func agentVerb(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := agentCmd()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestAgentVerbs(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	if err := os.Mkdir(filepath.Join(dir, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	conf := write("agent.yaml", "control: https://control.example.test\nsocks5: ['127.0.0.1:0']\n")
	cfg, err := agent.Load(conf)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Identity, cfg.Dialer, cfg.Sealer = agent.Identity{AgentID: "AGT00000001", DeviceID: "DEV00000001"}, agentTunnel{}, noSignature{}
	cfg.NewLink = func(agent.Events) (agent.Link, error) { return agentLink{}, nil }
	if _, err := agentVerb(t, "status", "-c", conf); err == nil || !strings.Contains(err.Error(), "is it running?") {
		t.Errorf("without an agent: %v", err)
	}
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for _, err := agentVerb(t, "status", "-c", conf); err != nil; _, err = agentVerb(t, "status", "-c", conf) {
		<-time.After(5 * time.Millisecond)
	}
	wrong, right := write("wrong", "not it\n"), write("right", "correct horse\n")
	var usage *usageError
	if _, err := agentVerb(t, "login", "-c", conf, "--password-file", right); !errors.As(err, &usage) {
		t.Errorf("nobody named: %v", err)
	}
	_, err = agentVerb(t, "login", "-c", conf, "-u", "USR00000001", "--password-file", wrong)
	if err == nil || !strings.Contains(err.Error(), "the sign-in failed") || !strings.Contains(err.Error(), "登录失败") {
		t.Errorf("wrong password: %v, want both languages", err)
	}
	if err := os.Chmod(right, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := agentVerb(t, "login", "-c", conf, "-u", "USR00000001", "--password-file", right); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("a password that others may read: %v", err)
	}
	if err := os.Chmod(right, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := agentVerb(t, "login", "-c", conf, "-u", "USR00000001", "--password-file", right); err != nil || !strings.Contains(out, "signed in as USR00000001") || !strings.Contains(out, "已登录") {
		t.Errorf("sign in: %q, %v", out, err)
	}
	if out, err := agentVerb(t, "resources", "-c", conf); err != nil || !strings.Contains(out, "APP00000001") || !strings.Contains(out, "10.0.0.5:443") {
		t.Errorf("resources: %q, %v", out, err)
	}
	out, err := agentVerb(t, "why", "APP00000001", "-c", conf)
	if err == nil || !strings.Contains(out, "08:00-20:00") || !strings.Contains(out, "policy POL00000007") || !strings.Contains(out, "策略 POL00000007") {
		t.Errorf("why: %q, %v", out, err)
	}
	out, err = agentVerb(t, "status", "-o", "json", "-c", conf)
	var s agent.Status
	if err != nil || json.Unmarshal([]byte(out), &s) != nil || s.UserID != "USR00000001" || s.State != agent.Ready || s.LastUser != "USR00000001" {
		t.Errorf("status: %q, %v", out, err)
	}
	if out, err := agentVerb(t, "logout", "-c", conf); err != nil || !strings.Contains(out, "已退出登录") {
		t.Errorf("sign out: %q, %v", out, err)
	}
}

func TestEnrolWritesNothingForABadCode(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	for _, code := range []string{"", "yumen1.AAAA", "something"} {
		if _, err := enrol(t.Context(), code, dir, "", ""); err == nil {
			t.Errorf("%q was taken", code)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%q: the folder was made", code)
		}
	}
}

func TestEnrolledConfigurationRuns(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "agent.yaml")
	if err := writeAgentConfig(file, "https://control.example.test:8443", filepath.Join(dir, "pass phrase")); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(file)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	c, err := agent.Load(file)
	if err != nil || c.Control != "https://control.example.test:8443" || c.PassphraseFile != filepath.Join(dir, "pass phrase") || c.Dir != dir {
		t.Errorf("got %+v, %v", c, err)
	}
	if err := writeAgentConfig(file, "https://control.example.test:8443", "x"); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if err := writeAgentConfig(file, "https://other.example.test", "x"); err == nil {
		t.Error("a configuration for another control center was kept in silence")
	}
	pass := filepath.Join(dir, "passphrase")
	for range 2 {
		if err := makePassphrase(pass); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(pass)
	if fi, _ := os.Stat(pass); err != nil || len(b) < 26 || fi.Mode().Perm() != 0o600 {
		t.Errorf("passphrase of %d bytes, %v, %v", len(b), fi.Mode(), err)
	}
}
