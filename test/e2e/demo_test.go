package e2e

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/agent"
	"github.com/yumen-zt/yumen/cmd/yumen/demo"
	"github.com/yumen-zt/yumen/test/testbed"
	"github.com/yumen-zt/yumen/wire"
)

// The demo tells its whole story and says that it held.
func TestQ4_DemoCheck(t *testing.T) {
	t.Parallel()
	out, err := testbed.Verb(within(t, 5*time.Minute), t, "demo", "--check")
	if err != nil {
		t.Errorf("yumen demo --check: %v\n%s", err, out)
	}
	guard := "off 未开启: it needs root"
	if os.Geteuid() == 0 {
		guard = "a stranger gets no answer, the agent's permit opens it"
	}
	if !strings.Contains(out, guard) {
		t.Errorf("of the guard it does not say %q:\n%s", guard, out)
	}
	t.Logf("%s", out)
}

// The demo runs with an application of somebody's own behind it.
func TestQ4_DemoWithAnApplicationOfYourOwn(t *testing.T) {
	t.Parallel()
	web := testbed.NewWebApp(t, false)
	dir := shortDir(t)
	p := testbed.Run(t, "demo", "demo", "--dir", dir, "--app", web.URL)
	testbed.Eventually(t, 60*time.Second, "the demo prints its story", func() bool {
		return strings.Contains(p.Output(), "is open") || !p.Running()
	})
	info, err := demo.ReadInfo(dir)
	if err != nil {
		t.Fatalf("%v\n%s", err, p.Output())
	}
	portal := info.App(demo.Portal)
	if portal.Backend != web.URL {
		t.Errorf("the portal's backend is %q, want %q", portal.Backend, web.URL)
	}
	ca, err := os.ReadFile(info.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	s := &testbed.Site{Port: info.Gateway.Port, CA: ca}
	b := s.NewBrowser(t, true, false)
	page, err := b.SignIn(within(t, time.Minute), portal.URL+"/hello", &testbed.User{Name: "alice", Password: info.User("alice").Password})
	if err != nil || page.Status != 200 || !strings.Contains(page.Body, "user "+info.User("alice").ID) {
		t.Errorf("alice at the portal: %v, %+v", err, page)
	}
	if page, err = b.Get(within(t, time.Minute), info.App(demo.Finance).URL+"/"); err != nil || page.Status != 403 || !strings.Contains(page.Body, "YM-303") {
		t.Errorf("alice at finance: %v, %+v", err, page)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("the demo's end: %v\n%s", err, p.Output())
	}
}

// What the demo saves is run by the verbs that it names, each role a process.
func TestQ4_DemoSaveRunsAsSeparateProcesses(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(shortDir(t), "lab")
	ctx := within(t, 2*time.Minute)
	out, err := testbed.Verb(ctx, t, "demo", "--save", dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := demo.ReadInfo(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"control run -c " + info.Control.Config, "gateway run -c " + info.Gateway.Config, "agent run -c " + info.Agent.Config} {
		if !strings.Contains(out, role) {
			t.Errorf("the demo does not say how to run %q:\n%s", role, out)
		}
	}
	testbed.Run(t, "control center", "control", "run", "-c", info.Control.Config)
	testbed.Run(t, "gateway", "gateway", "run", "-c", info.Gateway.Config)
	a := testbed.Run(t, "agent", "agent", "run", "-c", info.Agent.Config)
	client := agent.NewClient(info.Agent.Socket)
	defer client.Close()
	alice := info.User("alice")
	signedIn := false
	testbed.Eventually(t, 60*time.Second, "alice's tunnel", func() bool {
		if !a.Running() {
			t.Fatalf("the agent ended: %s", a.Output())
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if !signedIn {
			answer, err := client.Login(ctx, agent.LoginRequest{UserID: alice.ID, Factors: []wire.Factor{{AuthenticationType: 1, AuthenticationContent: alice.Password}}})
			signedIn = err == nil && answer.OK
			return false
		}
		st, err := client.Status(ctx)
		return err == nil && st.Gateway == info.Gateway.ID
	})
	resp, err := http.Get("http://" + info.Gateway.Metrics + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("healthz: %d", resp.StatusCode)
	}
}

// shortDir returns a folder whose path leaves room for the name of a socket.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ym")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
