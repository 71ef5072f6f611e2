package fault

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/test/badpath"
	"github.com/yumen-zt/yumen/test/roles"
	"github.com/yumen-zt/yumen/test/testbed"
)

const insideVar = "YUMEN_TEST_NETNS"

// inNamespace runs the test that calls it again, in a network namespace of its
// own, and reports what came of it. In there it reports true.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVar) != "" {
		if err := badpath.Up(); err != nil {
			t.Fatal(err)
		}
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("packets vanish in a network namespace: needs root")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("packets vanish by nftables: nft is not installed")
	}
	t.Parallel()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=3m")
	cmd.Env = append(os.Environ(), insideVar+"=1")
	badpath.InNamespace(cmd)
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "    ") {
			t.Log(strings.TrimSpace(line))
		}
	}
	if err != nil {
		t.Errorf("in a network namespace: %v\n%s", err, out)
	}
	return false
}

// The kernel drops every packet of the connections that are open, one 5-tuple
// after the other, and nobody is told. Alerts, identity reports, statuses and a
// revocation take less than 3 s nevertheless, and nothing is lost.
func TestGCR002_M48_M91_KernelDropsAConnection(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	k, err := badpath.NewKernel(8443)
	if err != nil {
		t.Fatal(err)
	}
	site, err := roles.New(roles.Config{Dir: t.TempDir(), Address: "127.0.0.1:8443"})
	if err == nil {
		err = site.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer site.Stop()
	var mu sync.Mutex
	worst, failed := map[string]time.Duration{}, 0
	told := func(d ctlclient.Delivery) {
		mu.Lock()
		defer mu.Unlock()
		if d.Err != nil {
			failed++
		}
		worst[d.Type] = max(worst[d.Type], d.Took)
	}
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err = site.User(ctx, "alice", password)
	must(err)
	bob, err := site.User(ctx, "bob", password)
	must(err)
	gp, err := site.Enrol(ctx, "gateway", "gateway")
	must(err)
	ap, err := site.Enrol(ctx, "agent", "agent")
	must(err)
	gw, err := site.Gateway(gp, func(c *ctlclient.GatewayConfig) { c.Delivered, c.IdentityInterval = told, 300*time.Millisecond })
	must(err)
	defer gw.Stop()
	ag, err := site.Agent(ctx, ap, "alice", password, func(c *ctlclient.AgentConfig) { c.Delivered, c.Interval = told, 300*time.Millisecond })
	must(err)
	defer ag.Stop()
	eventually(t, 20*time.Second, "the links stand", func() bool { return gw.Status().Push && ag.Status().Connected })

	var revoked time.Duration
	vanished := 0
	for round := range 3 {
		n, err := k.Vanish(nil)
		must(err)
		vanished += n
		gw.Raise(alert.Alert{Code: alert.AppDown, Detail: fmt.Sprintf("number g%06d.", round)})
		ag.Raise(alert.Alert{Code: alert.TunnelFault, Detail: fmt.Sprintf("number a%06d.", round)})
		began := time.Now()
		must(site.Do(ctx, "POST", "/v1/locks", control.NewLock{Kind: "user", ID: bob}, nil))
		if !gw.Await(10*time.Second, roles.IsLocked(bob)) {
			t.Error("the revocation never came")
		}
		revoked = max(revoked, time.Since(began))
		time.Sleep(time.Until(began.Add(2500 * time.Millisecond)))
		must(site.Do(ctx, "DELETE", "/v1/locks/user/"+bob, nil, nil))
	}
	eventually(t, 10*time.Second, "everything is delivered", func() bool {
		return gw.Status().Outbox[ctlclient.ClassAlert].Pending == 0 && ag.Status().Outbox[ctlclient.ClassAlert].Pending == 0
	})
	dropped, err := k.Dropped()
	must(err)
	mu.Lock()
	defer mu.Unlock()
	for _, table := range []string{"T4", "T10", "T11", "T16", "T21", "T22"} {
		t.Logf("%s: worst %v", table, worst[table].Round(time.Millisecond))
		if took, ok := worst[table]; !ok || took >= 3*time.Second {
			t.Errorf("%s took %v over a connection whose packets vanish, want less than 3s", table, took)
		}
	}
	t.Logf("revocation: worst %v; %d connections vanished, %d packets dropped", revoked.Round(time.Millisecond), vanished, dropped)
	if revoked >= 3*time.Second {
		t.Errorf("a revocation took %v, want less than 3s", revoked)
	}
	if vanished < 6 || dropped == 0 || failed != 0 {
		t.Errorf("%d connections vanished, %d packets were dropped, %d messages had no answer", vanished, dropped, failed)
	}
	arrived, err := site.Arrivals()
	must(err)
	times := map[string]int{}
	for _, a := range arrived {
		if i := strings.Index(a.Content, "number "); i >= 0 {
			times[a.Content[i:i+len("number g000000.")]]++
		}
	}
	if len(times) != 6 {
		t.Errorf("alerts that arrived: %v, want 6", times)
	}
	for name, n := range times {
		if n != 1 {
			t.Errorf("%q arrived %d times", name, n)
		}
	}
}

// The kernel drops every packet of an agent's tunnel. The agent that then shows
// a new token by Table 14 has proved it within 3 s, and its flows go on by a
// fresh tunnel.
func TestGCR002_M75_M81_KernelDropsTheTunnel(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	defer testbed.RemoveBinary()
	echo := testbed.NewTCPApp(t, false)
	app := testbed.App{ID: "APP00000001", Name: "echo", Upstream: "tcp://" + echo.Address}
	s := testbed.NewSite(t, testbed.SiteConfig{Apps: []testbed.App{app}})
	u := s.NewUser("alice")
	s.Grant(u, "any", time.Time{}, app.ID)
	ag := s.NewAgent(t, "agent", app)
	ag.SignIn(u)
	k, err := badpath.NewKernel(s.Port)
	if err != nil {
		t.Fatal(err)
	}
	use := func() error {
		c, err := net.DialTimeout("tcp", ag.Forwards[0], 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		err = c.SetDeadline(time.Now().Add(5 * time.Second))
		if err == nil {
			_, err = c.Write([]byte("over the tunnel"))
		}
		got := make([]byte, len("over the tunnel"))
		_, rerr := io.ReadFull(c, got)
		return errors.Join(err, rerr)
	}
	if err := use(); err != nil {
		t.Fatalf("before: %v", err)
	}
	n, err := k.Vanish(nil)
	if err != nil || n == 0 {
		t.Fatalf("%d connections vanished: %v", n, err)
	}
	began := time.Now()
	if err := ag.Login(u); err != nil { // a new token: Table 14 at once
		t.Fatal(err)
	}
	signedIn := time.Now()
	var proved time.Time
	eventually(t, 20*time.Second, "the new token is proved", func() bool {
		st, err := ag.Status()
		if err != nil || st.Renewed == nil || !st.Renewed.After(began) {
			return false
		}
		proved = *st.Renewed
		return true
	})
	took := proved.Sub(signedIn)
	t.Logf("%d connections vanished; proved %v after the token, a sign-in took %v", n, took.Round(time.Millisecond), signedIn.Sub(began).Round(time.Millisecond))
	if took >= 3*time.Second {
		t.Errorf("Table 14 took %v over a tunnel whose packets vanish, want less than 3s", took)
	}
	if err := use(); err != nil {
		t.Errorf("after it: %v", err)
	}
	if dropped, err := k.Dropped(); err != nil || dropped == 0 {
		t.Errorf("%d packets were dropped: %v", dropped, err)
	}
}
