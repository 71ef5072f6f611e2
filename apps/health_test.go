package apps

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/alert"
)

// checked runs the checks of one application until the test ends.
func checked(t *testing.T, a AppConfig) (*App, chan alert.Alert) {
	t.Helper()
	alerts := make(chan alert.Alert, 16)
	a.AllowAddresses = []string{"127.0.0.0/8"}
	a.Health.Interval, a.Health.Timeout = 100*time.Millisecond, 2*time.Second
	r, app := one(t, a, func(c *Config) { c.Alerts = alert.Func(func(a alert.Alert) { alerts <- a }) })
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { r.CheckHealth(ctx) })
	t.Cleanup(func() { cancel(); all.Wait() })
	return app, alerts
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

func TestR9_ChecksTakeUpstreamsOutAndBringThemBack(t *testing.T) {
	var sick atomic.Bool
	var asked atomic.Value
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Host + r.URL.Path)
		if sick.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer srv.Close()
	a, alerts := checked(t, AppConfig{Upstreams: []string{srv.URL}, Health: HealthConfig{Path: "/health"}})
	until(t, "it was never asked", func() bool { return asked.Load() != nil })
	if got := asked.Load(); got != "app.example.test/health" {
		t.Errorf("asked for %v", got)
	}
	sick.Store(true)
	until(t, "it is never taken out", func() bool { return a.Down("http") })
	if s := a.Upstreams[0].Status(time.Now()); !strings.Contains(s.Cause, "status 500") {
		t.Errorf("%+v", s)
	}
	if got := <-alerts; got.Code != alert.AppDown || got.AppID != a.ID {
		t.Errorf("alert %+v", got)
	}
	sick.Store(false)
	until(t, "it is never brought back", func() bool { return !a.Down("http") })
	if got := <-alerts; got.Code != alert.AppBack {
		t.Errorf("alert %+v", got)
	}
}

func TestConnectingIsACheckToo(t *testing.T) {
	at, _ := listener(t, "127.0.0.1:0")
	gone := httptest.NewServer(http.NotFoundHandler())
	dead := "tcp" + strings.TrimPrefix(gone.URL, "http")
	gone.Close()
	a, _ := checked(t, AppConfig{Upstreams: []string{"tcp://" + at.String(), dead}})
	until(t, "the dead one is not found", func() bool { return a.Upstreams[1].down.Load() })
	if a.Upstreams[0].down.Load() || a.Down("tcp") {
		t.Error("the live one is taken out")
	}
}

// Checks go through the dialer: they reach no address that requests may not.
func TestS15_ChecksReachNoInnerAddress(t *testing.T) {
	at, n := listener(t, "127.0.0.1:0")
	r, a := one(t, AppConfig{Upstreams: []string{"http://" + at.String()}, Health: HealthConfig{Path: "/", Interval: 100 * time.Millisecond}})
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { r.CheckHealth(ctx) })
	until(t, "it is never taken out", func() bool { return a.Down("http") })
	cancel()
	all.Wait()
	if n.Load() != 0 {
		t.Errorf("%d connections arrived", n.Load())
	}
}

func TestHealthFaultsNameTheirPath(t *testing.T) {
	c := Config{Apps: []AppConfig{
		{ID: "A1", Hosts: []string{"a.example"}, Upstreams: []string{"http://h"}, Health: HealthConfig{Path: "health", Interval: -1, Timeout: -1, Fall: -1}, MaxRequests: -1, Timeouts: TimeoutsConfig{Answer: -1}},
		{ID: "A2", Upstreams: []string{"tcp://h:1"}, Health: HealthConfig{Path: "/"}},
		{ID: "A3", Upstreams: []string{"udp://h:1"}, Health: HealthConfig{Interval: time.Second}},
	}}
	err := c.Validate()
	if err == nil {
		t.Fatal("no fault")
	}
	for _, want := range []string{"apps[0].health.path:", "apps[0].health.interval:", "apps[0].health.timeout:", "apps[0].health:", "apps[0].max_requests:", "apps[0].timeouts:", "apps[1].health.path:", "apps[2].health:"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no fault at %s in:\n%v", want, err)
		}
	}
}
