package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/test/testbed"
)

const (
	sshID  = "APP00000011"
	dnsID  = "APP00000012"
	perfID = "APP00000013"
	perfUD = "APP00000014"
	tcpID  = "APP00000015"
	sqlID  = "APP00000016"
)

// programs is a site with servers that we did not write, and an agent with a
// forward to each.
type programs struct {
	*testbed.Site
	t                    *testing.T
	ssh                  *testbed.SSH
	u                    *testbed.User
	a                    *testbed.Agent
	echo                 *testbed.TCPApp
	atSSH, atDNS, atPerf string
	atSQL                string // "": the system has no PostgreSQL
}

func newPrograms(t *testing.T) *programs {
	p := &programs{t: t, ssh: testbed.NewSSH(t), echo: testbed.NewTCPApp(t, false)}
	loop := func(scheme string, port int) string {
		return fmt.Sprintf("%s://%s", scheme, testbed.Loopback(false, port))
	}
	dns, perf := testbed.NewDNS(t, map[string]string{"wiki.corp": "10.9.8.7"}), testbed.NewIperf(t)
	apps := []testbed.App{
		{ID: sshID, Name: "ssh", Upstream: loop("tcp", p.ssh.Port)}, {ID: dnsID, Name: "dns", Upstream: loop("udp", dns)},
		{ID: perfID, Name: "perf", Upstream: loop("tcp", perf)}, {ID: perfUD, Name: "perfudp", Upstream: loop("udp", perf)},
		{ID: tcpID, Name: "echo", Upstream: "tcp://" + p.echo.Address},
	}
	granted, forwards := []string{sshID, dnsID, perfID, perfUD, tcpID}, apps[:4:4]
	if pg := peers(t).pg; pg != nil {
		sql := testbed.App{ID: sqlID, Name: "sql", Upstream: loop("tcp", pg.Port)}
		apps, granted, forwards = append(apps, sql), append(granted, sqlID), append(forwards, sql)
	}
	p.Site = testbed.NewSite(t, testbed.SiteConfig{Profile: ownLinks.Profile, Apps: apps})
	p.u = p.NewUser("programs")
	p.Grant(p.u, "any", time.Time{}, granted...)
	p.a = p.NewAgent(t, "programs", forwards...)
	p.a.SignIn(p.u)
	if len(p.a.Forwards) > 4 {
		p.atSQL = p.a.Forwards[4]
	}
	p.atSSH, p.atDNS, p.atPerf = p.a.Forwards[0], p.a.Forwards[1], p.a.Forwards[2]
	return p
}

// change puts a policy in force that everybody keeps, and takes another user's
// grant away: what flows must not notice.
func (p *programs) change() {
	p.t.Helper()
	p.Do("POST", "/v1/policies", map[string]string{"policyName": "whole week", "policyType": "time", "policyData": "* 0000-2400 Z"}, nil)
	other := p.NewUser(fmt.Sprintf("o%d", rand.IntN(1e6)))
	var done control.Done
	p.Do("POST", "/v1/grants", control.NewGrant{User: other.ID, Device: "any", Apps: []string{sshID}}, &done)
	p.Do("DELETE", "/v1/grants/"+done.ID, nil, nil)
}

// run runs a program to its end and returns what it wrote.
func (p *programs) run(ctx context.Context, env []string, name string, args ...string) string {
	p.t.Helper()
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), env...)
	var said bytes.Buffer
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		p.t.Fatalf("%s %v: %v\n%s%s", filepath.Base(name), args, err, out, said.Bytes())
	}
	return string(out)
}

func port(addr string) string { _, s, _ := net.SplitHostPort(addr); return s }

// Programs that we did not write, through the agent, while policies change
// under them; and their end when the right goes.
func TestGCR002_M4_M81_ProgramsThroughTheAgent(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("sshd of a test runs as root")
	}
	t.Parallel()
	p := newPrograms(t)
	ctx := within(t, 2*time.Minute)
	t.Run("dig", func(t *testing.T) {
		at := port(p.atDNS)
		for range 5 {
			if got := strings.TrimSpace(p.run(ctx, nil, testbed.Program(t, "dig"), "+short", "+tries=2", "+time=5", "@127.0.0.1", "-p", at, "wiki.corp", "A")); got != "10.9.8.7" {
				t.Errorf("dig: %q", got)
			}
		}
		p.change()
		if got := p.run(ctx, nil, testbed.Program(t, "dig"), "@127.0.0.1", "-p", at, "wiki.corp", "A"); !strings.Contains(got, "10.9.8.7") {
			t.Errorf("dig after a change: %s", got)
		}
	})
	t.Run("iperf3", p.iperf)
	t.Run("git over ssh", p.git)
	t.Run("PostgreSQL", p.postgres)
	t.Run("half-close", p.halfClose)
	t.Run("up and down", p.upAndDown)
	t.Run("ssh until the right ends", p.shell)
}

// upAndDown: one verb leads from nothing to a tunnel, a second call changes
// nothing, and down leaves nothing behind. The agent that stays is one of up.
func (p *programs) upAndDown(t *testing.T) {
	if err := p.a.Stop(); err != nil {
		t.Fatal(err)
	}
	ctx := within(t, time.Minute)
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(p.u.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	verb := func(words ...string) string {
		t.Helper()
		return p.run(ctx, nil, testbed.Binary(t), append(append([]string{"agent"}, words...), "-c", p.a.Config)...)
	}
	up := []string{"up", "--user", p.u.ID, "--password-file", file}
	if out := verb(up...); !strings.Contains(out, "ready") || !strings.Contains(out, "已就绪") {
		t.Errorf("up: %s", out)
	}
	first, err := p.a.Status()
	if err != nil {
		t.Fatal(err)
	}
	verb(up...)
	if again, err := p.a.Status(); err != nil || !again.Since.Equal(*first.Since) {
		t.Errorf("a second up made another tunnel: %v", err)
	}
	verb("down")
	testbed.Eventually(t, 10*time.Second, "the agent has ended", func() bool {
		_, err := os.Stat(filepath.Join(filepath.Dir(p.a.Config), "agent.sock"))
		return errors.Is(err, os.ErrNotExist)
	})
	verb(up...)
	p.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if _, err := p.a.Client.Stop(ctx); err != nil {
			t.Logf("end the background agent: %v", err)
		}
	})
}

func (p *programs) iperf(t *testing.T) {
	ctx, seconds := within(t, 3*time.Minute), "1"
	if testbed.Long() {
		seconds = "20"
	}
	type report struct {
		End struct {
			SumReceived struct {
				Bytes float64 `json:"bytes"`
			} `json:"sum_received"`
			Sum struct {
				Lost    float64 `json:"lost_packets"`
				Packets float64 `json:"packets"`
				BPS     float64 `json:"bits_per_second"`
			} `json:"sum"`
		} `json:"end"`
	}
	iperf := func(args ...string) (r report) {
		changed := make(chan struct{})
		go func() { defer close(changed); time.Sleep(300 * time.Millisecond); p.change() }() // well inside the transfer
		out := p.run(ctx, nil, testbed.Program(t, "iperf3"), append([]string{"-c", "127.0.0.1", "-p", port(p.atPerf), "-t", seconds, "-J"}, args...)...)
		<-changed
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	runs := [][]string{{"-R"}}
	if testbed.Long() {
		runs = append(runs, nil, []string{"-P", "4"})
	}
	for _, args := range runs {
		if r := iperf(args...); r.End.SumReceived.Bytes < 1<<20 {
			t.Errorf("iperf3 %v: %.0f bytes", args, r.End.SumReceived.Bytes)
		} else {
			t.Logf("iperf3 %v: %.0f MiB in %s s", args, r.End.SumReceived.Bytes/(1<<20), seconds)
		}
	}
	r := iperf("-u", "-b", "8M", "-l", "1200") // as a video does
	for range 2 {
		if r.End.Sum.Packets > 0 {
			break
		}
		r = iperf("-u", "-b", "8M", "-l", "1200") // iperf3 itself sends nothing in its second on a machine that is busy enough
	}
	t.Logf("iperf3 UDP: %.0f of %.0f datagrams lost", r.End.Sum.Lost, r.End.Sum.Packets)
	if r.End.Sum.Packets < 100 || r.End.Sum.Lost > r.End.Sum.Packets/3 {
		t.Errorf("iperf3 UDP: %+v", r.End.Sum)
	}
}

func (p *programs) git(t *testing.T) {
	ctx, git := within(t, time.Minute), testbed.Program(t, "git")
	dir := t.TempDir()
	env := []string{
		"GIT_SSH_COMMAND=" + p.ssh.Client + " " + strings.Join(p.ssh.Options(port(p.atSSH)), " "), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@example.org", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@example.org",
	}
	far, near, back := filepath.Join(dir, "far.git"), filepath.Join(dir, "near"), filepath.Join(dir, "back")
	p.run(ctx, env, git, "init", "-q", "--bare", far)
	p.run(ctx, env, git, "init", "-q", near)
	blob := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(blob)
	if err := os.WriteFile(filepath.Join(near, "blob"), blob, 0o600); err != nil {
		t.Fatal(err)
	}
	p.run(ctx, env, git, "-C", near, "add", "blob")
	p.run(ctx, env, git, "-C", near, "commit", "-q", "-m", "one")
	changed := make(chan struct{})
	go func() { defer close(changed); p.change() }()
	p.run(ctx, env, git, "-C", near, "push", "-q", "root@127.0.0.1:"+far, "HEAD:refs/heads/main")
	p.run(ctx, env, git, "clone", "-q", "-b", "main", "root@127.0.0.1:"+far, back)
	<-changed
	if got, err := os.ReadFile(filepath.Join(back, "blob")); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("the clone has %d other bytes, %v", len(got), err)
	}
}

// postgres: a query that is under way while policies change ends well.
func (p *programs) postgres(t *testing.T) {
	if p.atSQL == "" {
		t.Skip("the system has no PostgreSQL")
	}
	changed := make(chan struct{})
	go func() { defer close(changed); time.Sleep(300 * time.Millisecond); p.change() }() // well inside the query
	got, err := peers(t).pg.Query(within(t, time.Minute), p.atSQL, "select sum(i) || ' ' || count(pg_sleep(0.3)) from generate_series(1, 4) i")
	<-changed
	if err != nil || strings.TrimSpace(got) != "10 4" {
		t.Errorf("a query under a change of policies: %q, %v", got, err)
	}
}

// halfClose: the end of one direction reaches the application, and the other
// direction goes on.
func (p *programs) halfClose(t *testing.T) {
	ctx := within(t, time.Minute)
	c, err := testbed.DialSOCKS(ctx, p.a.SOCKS5, p.echo.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "half"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "half" {
		t.Errorf("after a half-close: %q, %v", b, err)
	}
}

// shell: a session of ssh lives over changes, and ends with the right.
func (p *programs) shell(t *testing.T) {
	ctx := within(t, time.Minute)
	c := exec.CommandContext(ctx, p.ssh.Client, append(p.ssh.Options(port(p.atSSH)), "root@127.0.0.1", "cat")...)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	c.Stderr = &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	word := func(s string) {
		t.Helper()
		if _, err := io.WriteString(in, s); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, len(s))
		if _, err := io.ReadFull(out, b); err != nil || string(b) != s {
			t.Fatalf("ssh: %q, %v, %s", b, err, said.Bytes())
		}
	}
	word("before\n")
	p.change()
	word("after a change\n")
	p.Lock(p.u, "go home")
	began := time.Now()
	err = c.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 255 { // ssh's own: the connection
		t.Errorf("ssh ended by %v, %s", err, said.Bytes())
	}
	t.Logf("ssh ended %v after the confirmed lock: %s", time.Since(began).Round(time.Millisecond), bytes.TrimSpace(said.Bytes()))
	if _, err := testbed.DialSOCKS(ctx, p.a.SOCKS5, p.echo.Address); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a locked user's next connection: %v", err)
	}
}
