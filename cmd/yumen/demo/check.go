package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/gateway"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/internal/audit"
)

// The standard's figures (§6.2, §7.2, §8.2, §9.2, and Table 10).
const (
	period  = 60 * time.Second // most between two reports
	latency = 3 * time.Second  // most from an event to its receipt
)

// Check walks the whole story on the running demo, using only what demo.json
// holds, and prints each step with its time. It returns the first step that
// failed.
func (i *Info) Check(ctx context.Context, w io.Writer) error {
	c := &checker{
		Info: i, out: w, began: time.Now(),
		control: control.NewAdminClient(i.Control.Socket), gateway: adminsock.NewClient(i.Gateway.Socket), demo: adminsock.NewClient(i.Socket),
	}
	defer c.close()
	for n, s := range []struct {
		what string
		run  func(context.Context) (string, error)
	}{
		{"a stranger is asked to sign in 陌生人须先登录", c.stranger},
		{"web login 网页登录", c.webLogin},
		{"a page that is not granted 未授权页面被拒绝", c.denied},
		{"agent flow by SOCKS5 代理隧道访问", c.agentFlow},
		{"the guard, from outside 防护：外部探测", c.guarded},
		{"web over TLCP 国密网页访问", c.webOverTLCP},
		{"tunnel over TLCP 国密隧道", c.tunnelOverTLCP},
		{"control links over TLCP 国密控制链路", c.controlOverTLCP},
		{"Table 1 of the application 应用身份上报（表1）", c.table1},
		{"a list change takes effect 授权变更即时生效", c.listChange},
		{"live revocation of a download and a tunnel flow 在线撤权", c.revocation},
		{"alert at the control center 告警送达控制中心", c.alert},
		{"the user comes back after unlock 解锁后恢复", c.comeBack},
		{"control center stopped, the gateway serves 控制中心停止，网关继续服务", c.unplugged},
		{"control center back 控制中心恢复", c.plugged},
		{"reports at least every 60 s, across the reconnect 报送间隔不超过60秒", c.gaps},
	} {
		start := time.Now()
		detail, err := s.run(ctx)
		took := time.Since(start).Round(time.Millisecond)
		if err != nil {
			fmt.Fprintf(w, "%2d  FAILED  %8s  %s: %v\n", n+1, took, s.what, err)
			return fmt.Errorf("step %d (%s): %w", n+1, s.what, err)
		}
		fmt.Fprintf(w, "%2d  ok      %8s  %s: %s\n", n+1, took, s.what, detail)
	}
	fmt.Fprintf(w, "the whole story passed in %s 全部通过\n", time.Since(c.began).Round(time.Second))
	return nil
}

// Running reports whether a demo serves this site.
func (i *Info) Running() bool {
	c, err := net.DialTimeout("unix", i.Socket, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

type checker struct {
	*Info
	out     io.Writer
	began   time.Time
	control *control.AdminClient
	gateway *adminsock.Client
	demo    *adminsock.Client

	alice    *Browser
	lockedAt time.Time
	rejoined time.Time
}

func (c *checker) close() {
	if c.alice != nil {
		c.alice.Close()
	}
}

func (c *checker) stranger(ctx context.Context) (string, error) {
	b, err := c.NewBrowser()
	if err != nil {
		return "", err
	}
	defer b.Close()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.App(Portal).URL+"/whoami", nil)
	if err != nil {
		return "", err
	}
	resp, err := b.http.Do(r) // as a program: no page, no redirect
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil || resp.StatusCode != http.StatusUnauthorized || !strings.Contains(string(raw), "YM-201") {
		return "", fmt.Errorf("status %d, %q, %v; want 401 and YM-201", resp.StatusCode, raw, err)
	}
	return "401 YM-201", nil
}

func (c *checker) webLogin(ctx context.Context) (string, error) {
	var err error
	if c.alice, err = c.NewBrowser(); err != nil {
		return "", err
	}
	status, body, err := c.alice.SignIn(ctx, c.App(Portal).URL+"/whoami", c.User("alice"))
	if err != nil {
		return "", err
	}
	if status != http.StatusOK || !strings.Contains(body, "user "+c.User("alice").ID) {
		return "", fmt.Errorf("after the sign-in: status %d, %.300q", status, body)
	}
	return "the application sees " + strings.TrimSpace(body), nil
}

func (c *checker) denied(ctx context.Context) (string, error) {
	status, body, _, err := c.alice.Page(ctx, c.App(Finance).URL+"/")
	if err != nil {
		return "", err
	}
	if status != http.StatusForbidden || !strings.Contains(body, "YM-303") || !strings.Contains(body, "未获得该应用的授权") || !strings.Contains(body, "not granted") {
		return "", fmt.Errorf("status %d, %.300q; want 403 and YM-303 in both languages", status, body)
	}
	return "403 YM-303 in both languages", nil
}

// echo sends a line through the agent and reads it back.
func echo(conn net.Conn, line string) error {
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return err
	}
	got, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || got != line+"\n" {
		return fmt.Errorf("echo: got %q, %v, want %q", got, err, line)
	}
	return nil
}

func (c *checker) agentFlow(ctx context.Context) (string, error) {
	conn, err := dialSOCKS5(ctx, c.Agent.SOCKS5, c.App(Echo).Address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := echo(conn, "through the gate"); err != nil {
		return "", err
	}
	if stray, err := dialSOCKS5(ctx, c.Agent.SOCKS5, c.Gateway.Metrics); err == nil {
		stray.Close()
		return "", errors.New("the agent carried a connection to an address that is no resource")
	}
	return "echo answered; an address outside the list was refused", nil
}

func (c *checker) status(ctx context.Context) (gateway.Status, error) {
	var s gateway.Status
	err := c.gateway.Do(ctx, http.MethodGet, "/status", nil, &s)
	return s, err
}

func (c *checker) table1(ctx context.Context) (string, error) {
	s, err := c.status(ctx)
	if err != nil {
		return "", err
	}
	for _, a := range s.Apps {
		if a.ID == Portal && a.State != "online" {
			return "", fmt.Errorf("the portal is %s", a.State)
		}
	}
	t1, err := records(c.Gateway.Config, "T1")
	if err != nil || len(t1) == 0 {
		return "", fmt.Errorf("no Table 1 in the audit: %w", err)
	}
	return fmt.Sprintf("online, %d reports accepted", len(t1)), nil
}

// within polls until ok reports true, for at most limit, and returns how long
// it took.
func within(ctx context.Context, limit time.Duration, ok func() (bool, error)) (time.Duration, error) {
	start := time.Now()
	for {
		done, err := ok()
		took := time.Since(start)
		if done {
			return took, nil
		}
		if took > limit {
			return took, fmt.Errorf("not within %s: %w", limit, err)
		}
		select {
		case <-ctx.Done():
			return took, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (c *checker) listChange(ctx context.Context) (string, error) {
	financeGives := func(want int) func() (bool, error) {
		return func() (bool, error) {
			status, _, _, err := c.alice.Page(ctx, c.App(Finance).URL+"/")
			return err == nil && status == want, errors.Join(err, fmt.Errorf("status %d, want %d", status, want))
		}
	}
	var grant control.Done
	if err := c.control.Do(ctx, http.MethodPost, "/v1/grants", control.NewGrant{User: "alice", Device: "browser", Apps: []string{Portal, Finance}}, &grant); err != nil {
		return "", err
	}
	opened, err := within(ctx, latency, financeGives(http.StatusOK))
	if err != nil {
		return "", err
	}
	if err := c.control.Do(ctx, http.MethodDelete, "/v1/grants/"+grant.ID, nil, nil); err != nil {
		return "", err
	}
	closed, err := within(ctx, latency, financeGives(http.StatusForbidden))
	return fmt.Sprintf("granted: open after %s; withdrawn: closed after %s", opened.Round(time.Millisecond), closed.Round(time.Millisecond)), err
}

// lastByte reads from r until it ends and returns when it did.
func lastByte(r io.Reader) <-chan time.Time {
	ended := make(chan time.Time, 1)
	go func() {
		_, _ = io.Copy(io.Discard, r) // how it ends is the question
		ended <- time.Now()
	}()
	return ended
}

func (c *checker) revocation(ctx context.Context) (string, error) {
	resp, err := c.alice.Open(ctx, c.App(Portal).URL+"/download")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the download began with status %d", resp.StatusCode)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
		return "", fmt.Errorf("read the download: %w", err)
	}
	flow, err := dialSOCKS5(ctx, c.Agent.SOCKS5, c.App(Echo).Address)
	if err != nil {
		return "", err
	}
	defer flow.Close()
	if err := echo(flow, "before"); err != nil {
		return "", err
	}
	if err := flow.SetDeadline(time.Time{}); err != nil {
		return "", err
	}
	download, tunnel := lastByte(resp.Body), lastByte(flow)

	c.lockedAt = time.Now()
	var locked control.Locked
	if err := c.control.Do(ctx, http.MethodPost, "/v1/locks", control.NewLock{Kind: "user", ID: "alice", Message: "演示 demo check", Wait: latency}, &locked); err != nil {
		return "", err
	}
	var times []string
	for name, ended := range map[string]<-chan time.Time{"download": download, "tunnel flow": tunnel} {
		select {
		case at := <-ended:
			times = append(times, fmt.Sprintf("%s cut %s after the order", name, at.Sub(c.lockedAt).Round(time.Millisecond)))
		case <-time.After(latency):
			return "", fmt.Errorf("the %s still flows %s after the lock", name, latency)
		}
	}
	slices.Sort(times)
	_, body, at, err := c.alice.Page(ctx, c.App(Portal).URL+"/whoami")
	if err != nil {
		return "", err
	}
	if strings.Contains(body, "user "+c.User("alice").ID) {
		return "", fmt.Errorf("the locked user still sees the portal at %s", at)
	}
	return strings.Join(times, ", "), nil
}

func (c *checker) alert(ctx context.Context) (string, error) {
	var took time.Duration
	_, err := within(ctx, latency, func() (bool, error) {
		all, err := records(c.Control.Audit, "T11")
		for _, r := range all {
			if r.Time.After(c.lockedAt) {
				took = r.Time.Sub(c.lockedAt)
				return took <= latency, fmt.Errorf("it took %s", took)
			}
		}
		return false, errors.Join(err, errors.New("no Table 11 since the lock"))
	})
	return fmt.Sprintf("Table 11 accepted %s after the lock was ordered", took.Round(time.Millisecond)), err
}

func (c *checker) comeBack(ctx context.Context) (string, error) {
	if err := c.control.Do(ctx, http.MethodDelete, "/v1/locks/user/alice", nil, nil); err != nil {
		return "", err
	}
	c.alice.Close()
	again, err := c.NewBrowser()
	if err != nil {
		return "", err
	}
	c.alice = again
	took, err := within(ctx, 10*time.Second, func() (bool, error) {
		status, body, err := c.alice.SignIn(ctx, c.App(Portal).URL+"/whoami", c.User("alice"))
		// The provider's form is 200, too: within the second of the lock the new
		// session is revoked with the old ones, and the form comes again.
		return err == nil && status == http.StatusOK && strings.Contains(body, c.User("alice").ID), errors.Join(err, fmt.Errorf("status %d", status))
	})
	if err != nil {
		return "", err
	}
	join, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := c.SignInAgent(join); err != nil {
		return "", err
	}
	c.rejoined = time.Now()
	return fmt.Sprintf("signed in again after %s, the agent too", took.Round(time.Millisecond)), nil
}

func (c *checker) unplugged(ctx context.Context) (string, error) {
	if err := c.demo.Do(ctx, http.MethodPost, "/control/stop", nil, nil); err != nil {
		return "", err
	}
	if conn, err := net.DialTimeout("tcp", strings.TrimPrefix(c.Control.URL, "https://"), time.Second); err == nil {
		conn.Close()
		return "", errors.New("the control center still listens")
	}
	if status, body, _, err := c.alice.Page(ctx, c.App(Portal).URL+"/whoami"); err != nil || status != http.StatusOK {
		return "", fmt.Errorf("the portal without a control center: status %d, %v, %.200q", status, err, body)
	}
	if status, _, _, err := c.alice.Page(ctx, c.App(Finance).URL+"/"); err != nil || status != http.StatusForbidden {
		return "", fmt.Errorf("finance without a control center: status %d, %v, want 403", status, err)
	}
	_, err := c.agentFlow(ctx)
	return "allowed pages and flows go on, denied ones stay denied", err
}

func (c *checker) plugged(ctx context.Context) (string, error) {
	if err := c.demo.Do(ctx, http.MethodPost, "/control/start", nil, nil); err != nil {
		return "", err
	}
	took, err := within(ctx, 30*time.Second, func() (bool, error) {
		s, err := c.status(ctx)
		return err == nil && s.Control != nil && s.Control.Connected && s.Control.Push, errors.Join(err, errors.New("not connected"))
	})
	return fmt.Sprintf("connected again after %s", took.Round(time.Millisecond)), err
}

// gaps waits until every periodic report has come round and looks at the
// largest gaps in the two audit records.
func (c *checker) gaps(ctx context.Context) (string, error) {
	const turn = period + 6*time.Second
	if left := turn - time.Since(c.rejoined); left > 0 {
		fmt.Fprintf(c.out, "              waiting %s for the periodic reports ... 等待周期报送\n", left.Round(time.Second))
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(left):
		}
	}
	var out []string
	for _, r := range []struct{ what, file, table string }{
		{"T4 identity of the gateway", c.Control.Audit, "T4"}, {"T10 status of the gateway", c.Control.Audit, "T10"},
		{"T16 identity of the agent", c.Control.Audit, "T16"}, {"T21 status of the agent", c.Control.Audit, "T21"},
		{"T14 renewal of the tunnel", c.Gateway.Config, "T14"}, {"T1 of the application", c.Gateway.Config, "T1"},
	} {
		all, err := records(r.file, r.table)
		if err != nil {
			return "", err
		}
		// Reports of a party that is signed in: for the agent, since it came back.
		since := c.began
		if r.table == "T14" || r.table == "T16" || r.table == "T21" {
			since = c.rejoined
		}
		last, most, n := since, time.Duration(0), 0
		for _, a := range all {
			if a.Time.Before(since) {
				continue
			}
			most, last, n = max(most, a.Time.Sub(last)), a.Time, n+1
		}
		most = max(most, time.Since(last))
		if n == 0 || most > period {
			return "", fmt.Errorf("%s: largest gap %s over %d reports, at most %s", r.what, most.Round(time.Millisecond), n, period)
		}
		out = append(out, fmt.Sprintf("%s %s", r.table, most.Round(100*time.Millisecond)))
	}
	return "largest gaps " + strings.Join(out, ", "), nil
}

// records returns the accepted operations on a table in an audit file, or in the
// store of the gateway whose configuration it is, oldest first. Table 16 is a
// sign-in, too.
func records(file, table string) ([]audit.Record, error) {
	var raw bytes.Buffer
	if filepath.Ext(file) == ".yaml" {
		store, _, err := gateway.AuditFolder(file)
		if err == nil {
			_, err = audit.Selection{}.Copy(&raw, store)
		}
		if err != nil {
			return nil, err
		}
	} else if b, err := os.ReadFile(file); err != nil {
		return nil, fmt.Errorf("read audit: %w", err)
	} else {
		raw.Write(b)
	}
	var out []audit.Record
	for line := range bytes.Lines(raw.Bytes()) {
		var r audit.Record
		if json.Unmarshal(line, &r) == nil && (r.Kind == audit.Interface || r.Kind == audit.Login) && r.Object == table && r.Allowed {
			out = append(out, r)
		}
	}
	return out, nil
}
