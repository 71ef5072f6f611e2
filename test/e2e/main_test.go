// Package e2e drives the real binary over real sockets on loopback, beside real
// peers. The names of the tests carry the rows that they show.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/test/testbed"
)

var suite = &testbed.Suite{}

// atOnce is how many tests run at a time: most of them wait.
const atOnce = 8

func TestMain(m *testing.M) {
	testbed.RunConnector() // it may be this process's part
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f != nil && f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		_ = f.Value.Set(strconv.Itoa(atOnce)) // a number is what the flag wants
	}
	testbed.HoldDemoPorts(suite)
	code := m.Run()
	suite.Close()
	testbed.RemoveBinary()
	os.Exit(code)
}

// The applications of the shared sites.
const (
	webID   = "APP00000001" // in the test's process: records, streams
	filesID = "APP00000002" // nginx
	redisID = "APP00000003"
	pgID    = "APP00000004"
	echoID  = "APP00000005" // TCP, in the test's process
	udpID   = "APP00000006" // UDP, in the test's process
)

// peerSet is what stands behind the gateways.
type peerSet struct {
	nginx *testbed.Nginx
	redis int
	pg    *testbed.PostgreSQL // nil: the system has none
}

var (
	makePeers = sync.OnceValue(func() *peerSet {
		return &peerSet{testbed.NewNginx(suite), testbed.NewRedis(suite), testbed.NewPostgreSQL(suite)}
	})
	peers = testbed.Once(suite, "peers", func(testbed.Owner) *peerSet { return makePeers() })
)

// where is what a world's links run over.
type where struct {
	v6 bool
	profile.Profile
}

// String is a word that is fit for names: of files, tables, users.
func (x where) String() string {
	s := "IPv4"
	if x.v6 {
		s = "IPv6"
	}
	return s + map[profile.Profile]string{profile.Intl: "TLS", profile.Mixed: "TLCP", profile.GM: "GM"}[x.Profile]
}

// protocol is how status and audit name what a link runs over.
func (x where) protocol(got string) bool {
	return x.TLCP() && got == "tlcp" || !x.TLCP() && strings.HasPrefix(got, "tls1.")
}

// world is a site with every kind of application.
type world struct {
	*testbed.Site
	where
	web  *testbed.WebApp
	echo *testbed.TCPApp
}

// newWorld makes a world; extra are further lines of gateway.yaml.
func newWorld(o testbed.Owner, p *peerSet, x where, extra ...string) *world {
	w := &world{web: testbed.NewWebApp(o, x.v6), echo: testbed.NewTCPApp(o, x.v6), where: x}
	apps := []testbed.App{
		{ID: webID, Name: "web", Upstream: w.web.URL},
		{ID: echoID, Name: "echo", Upstream: "tcp://" + w.echo.Address},
		{ID: udpID, Name: "udp", Upstream: "udp://" + testbed.NewUDPApp(o, x.v6)},
	}
	if p != nil {
		apps = append(apps, testbed.App{ID: filesID, Name: "files", Upstream: p.nginx.URL(x.v6)},
			testbed.App{ID: redisID, Name: "redis", Upstream: "tcp://" + testbed.Loopback(x.v6, p.redis)})
		if p.pg != nil {
			apps = append(apps, testbed.App{ID: pgID, Name: "pg", Upstream: "tcp://" + testbed.Loopback(x.v6, p.pg.Port)})
		}
	}
	w.Site = testbed.NewSite(o, testbed.SiteConfig{V6: x.v6, Profile: x.Profile, Apps: apps, Gateway: strings.Join(extra, "")})
	return w
}

func (w *world) app(id string) testbed.App {
	for _, a := range w.Apps {
		if a.ID == id {
			return a
		}
	}
	return testbed.App{}
}

// The ways in which the suite is run: what depends on the protocol of a link
// runs over all of them, what does not over ownLinks alone.
var (
	everywhere = []where{overTLS, {true, profile.Intl}, ownLinks, {true, profile.Mixed}}
	overTLS    = where{false, profile.Intl}
	ownLinks   = where{false, profile.Mixed} // TLCP: what own links run over by default
	gmOnly     = where{true, profile.GM}     // nobody speaks TLS: for what depends on that
)

// The sites that tests share.
var worlds = func() map[where]func(testing.TB) *world {
	out := map[where]func(testing.TB) *world{}
	for _, x := range append(everywhere, gmOnly) {
		out[x] = testbed.Once(suite, x.String()+" site", func(o testbed.Owner) *world { return newWorld(o, makePeers(), x) })
	}
	return out
}()

// inWorlds runs a test over each of the given ways.
func inWorlds(t *testing.T, over []where, f func(t *testing.T, w *world)) {
	for _, x := range over {
		t.Run(x.String(), func(t *testing.T) {
			t.Parallel()
			f(t, worlds[x](t))
		})
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// signedIn returns a browser with a session of u on the applications named.
func (w *world) signedIn(t testing.TB, u *testbed.User, h2 bool, hosts ...string) *testbed.Browser {
	t.Helper()
	b := w.NewBrowser(t, h2, w.v6)
	ctx := within(t, 60*time.Second)
	for i, h := range hosts {
		var p *testbed.Page
		var err error
		if i == 0 {
			p, err = b.SignIn(ctx, w.URL(h, "/"), u)
		} else {
			p, err = b.Get(ctx, w.URL(h, "/"))
		}
		if err != nil {
			t.Fatalf("sign in at %s: %v", h, err)
		}
		if want := fmt.Sprintf("%s.%s", h, testbed.Domain); !strings.HasPrefix(p.At.Host, want) || p.Status >= 400 && p.Status != 403 && p.Status != 404 {
			t.Fatalf("sign in at %s: %d at %s: %.400s", h, p.Status, p.At, p.Body)
		}
	}
	return b
}
