package upstream

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/internal/watch"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

// A burst as wide as a few HTTP/2 connections must find the connections of the
// burst before it: dialling for each request costs more than the request.
func TestBurstsUseConnectionsAgain(t *testing.T) {
	const wide = 320
	var all sync.WaitGroup // every request of a burst is in flight at once
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		all.Done()
		all.Wait()
		_, _ = io.WriteString(w, "here")
	}))
	defer srv.Close()
	reg, err := apps.New(apps.Config{Apps: []apps.AppConfig{{
		ID: "APP00000001", Hosts: []string{"app.test"}, Upstreams: []string{srv.URL}, AllowAddresses: []string{"127.0.0.0/8"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	var dials atomic.Int64
	e := New(Config{
		Dial: func(ctx context.Context, a *apps.App, network, addr string) (net.Conn, error) {
			dials.Add(1)
			return reg.Dial(ctx, a, network, addr)
		},
		AnswerTimeout: 10 * time.Second, IdleTimeout: time.Minute, Watch: watch.New(),
	})
	defer e.CloseIdle()
	app := reg.ID("APP00000001")
	burst := func() {
		all.Add(wide)
		var g sync.WaitGroup
		for range wide {
			g.Go(func() {
				x := &exchange.Exchange{}
				x.Begin(t.Context(), time.Now())
				defer x.End()
				u := app.Pick(time.Now(), "", "http")
				defer u.Release()
				res, err := e.Do(x, app, u, &Request{Method: "GET", Host: "app.test", Path: "/"})
				if err != nil {
					t.Error(err)
					all.Done()
					return
				}
				defer res.Body.Close()
				if b, err := io.ReadAll(res.Body); err != nil || string(b) != "here" {
					t.Errorf("read %q, %v", b, err)
				}
			})
		}
		g.Wait()
	}
	burst()
	first := dials.Load()
	burst()
	// On a busy machine a connection may not be back in the pool yet when the
	// second burst begins; a pool that is too small costs most of them.
	if more := dials.Load() - first; more > wide/10 {
		t.Fatalf("%d dials for the second burst of %d, want next to none", more, wide)
	}
}

// stuck is a connection whose farewell waits for a peer that reads nothing.
type stuck struct{ net.Conn }

func (s stuck) NetConn() net.Conn { return s.Conn }
func (stuck) Close() error        { select {} }

// The sweep is on the goroutine that all alarms ring on: it waits for nobody.
func TestTheSweepDoesNotWaitForUpstreams(t *testing.T) {
	e := New(Config{AnswerTimeout: time.Second, IdleTimeout: -time.Nanosecond, Watch: watch.New()})
	u := new(apps.Upstream)
	for _, sweep := range []func(){e.closeOld, e.CloseIdle} {
		here, there := net.Pipe()
		e.keep(newConn(e, u, stuck{here}))
		sweep()
		if _, err := there.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the connection is open: %v", err)
		}
	}
}
