// Package apps puts applications that others wrote behind the gateway and drives
// them with clients that others wrote: Node's ws library, gRPC's own
// interoperability programs, a browser, and scanners that attack the port.
//
// What takes long or is large to install runs with YUMEN_LONG=1 (make test-long).
package apps

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/test/testbed"
)

var suite = &testbed.Suite{}

func TestMain(m *testing.M) {
	flag.Parse()
	testbed.HoldDemoPorts(suite)
	for _, name := range []string{"node", "npm"} {
		if _, err := exec.LookPath(name); err != nil && !testbed.Long() {
			fmt.Printf("skipped: no %s; test/needs.sh long installs it\n", name)
			return
		}
	}
	code := m.Run()
	suite.Close()
	testbed.RemoveBinary()
	os.Exit(code)
}

const (
	nodeID  = "APP00000001" // app.js
	grpcID  = "APP00000002" // gRPC's interoperability server
	bytesID = "APP00000003" // streams of any size, in the test's process
)

// world is a site with those applications. The gRPC server is started by the
// test that needs it.
type world struct {
	*testbed.Site
	grpcPort int
	dir      string // of the peers: app.js, client.js and what they need
}

var site = testbed.Once(suite, "site", func(o testbed.Owner) *world {
	w := &world{grpcPort: testbed.Port(o), dir: install(o)}
	nodePort := testbed.Port(o)
	testbed.RunOther(o, "node", program(o, "node"), filepath.Join(w.dir, "app.js"), strconv.Itoa(nodePort))
	w.Site = testbed.NewSite(o, testbed.SiteConfig{Profile: profile.Intl, Apps: []testbed.App{
		{ID: nodeID, Name: "node", Upstream: "http://" + testbed.Loopback(false, nodePort)},
		{ID: grpcID, Name: "grpc", Upstream: "http://" + testbed.Loopback(false, w.grpcPort), Extra: "    http2: true\n"},
		{ID: bytesID, Name: "bytes", Upstream: newBytes(o)},
	}})
	return w
})

func program(o testbed.Owner, name string) string {
	o.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		o.Fatalf("%v (run test/needs.sh long)", err)
	}
	return path
}

// install lays out the peers' scripts with the ws library, by npm.
func install(o testbed.Owner) string {
	o.Helper()
	dir, err := os.MkdirTemp("", "yumen-peers-")
	if err != nil {
		o.Fatalf("%v", err)
	}
	o.Cleanup(func() { _ = os.RemoveAll(dir) }) // of the system's temporary folders
	if err := os.CopyFS(dir, os.DirFS("peers")); err != nil {
		o.Fatalf("%v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	npm := exec.CommandContext(ctx, program(o, "npm"), "install", "--no-audit", "--no-fund", "--ignore-scripts")
	npm.Dir = dir
	if out, err := npm.CombinedOutput(); err != nil {
		o.Fatalf("npm install: %v\n%s", err, out)
	}
	return dir
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// user returns a new user of the application and a signed-in browser's cookies
// there.
func (w *world) user(t *testing.T, name, appID, host string) (u *testbed.User, cookies string) {
	t.Helper()
	u = w.NewUser(name)
	w.Grant(u, "browser", time.Time{}, appID)
	b := w.NewBrowser(t, false, false)
	p, err := b.SignIn(within(t, time.Minute), w.URL(host, "/whoami"), u)
	if err != nil || !strings.HasPrefix(p.At.Host, host+".") {
		t.Fatalf("sign in at %s: %v", host, err)
	}
	return u, b.Cookies(w.URL(host, "/"))
}

// peer runs a client to its end and returns what it printed.
func peer(t *testing.T, limit time.Duration, env []string, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(within(t, limit), name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func long(t *testing.T, why string) {
	t.Helper()
	if !testbed.Long() {
		t.Skip("YUMEN_LONG=1 runs it: " + why)
	}
}
