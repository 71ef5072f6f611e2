package proxy

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// live replaces the fake gate by access itself, with one grant.
func live(t *testing.T, f *fixture, apps ...string) (*access.Access, func(apps ...string)) {
	a := access.New(access.Config{GatewayID: "GW000000001", Audit: f.audit})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = a.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	version := uint64(0)
	grant := func(apps ...string) {
		version++
		row := wire.Grant{UserID: "USR00000001", DeviceID: "DEV00000001", AuthenticationToken: "tokentoken1",
			ExpirationDate: wire.FormatTime(time.Now().Add(time.Hour)), AppIDList: apps}
		faults := a.Apply(policy.Input{Apps: []policy.App{{ID: "APP00000001"}, {ID: "APP00000002"}}, Grants: []policy.Row{{Grant: row}},
			Policies: []wire.Policy{{PolicyID: "POL00000001", PolicyName: "n", PolicyType: "app", PolicyData: "GET /api/*"}}, Version: version, PolicyVersion: version})
		for _, fault := range faults {
			t.Errorf("fault: %v", fault.Err)
		}
	}
	grant(apps...)
	f.p.gate = liveGate{a}
	f.p.SetApps(f.p.site.Load().registry)
	return a, grant
}

// The walk with access itself: granted, refused by grant and by policy, and a
// live answer cut when the grant goes.
func TestGCR002_M57_RemovalOfAGrantCutsLiveRequests(t *testing.T) {
	began := make(chan struct{}, 2)
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/big" {
			began <- struct{}{}
			endless(w, r)
		}
		_, _ = io.WriteString(w, "fine")
	}))
	_, grant := live(t, f, "APP00000001")
	for _, proto := range protocols {
		grant("APP00000001")
		c := f.client(proto)
		if res, body := do(t, c, "GET", "https://"+host+"/api/x", nil, nil); res.StatusCode != 200 || body != "fine" {
			t.Fatalf("%s: granted: %d %s", proto, res.StatusCode, body)
		}
		for url, code := range map[string]string{"https://" + host + "/admin": "YM-411", "https://other.example.test/api/x": "YM-303"} {
			if res, body := do(t, c, "GET", url, nil, nil); res.StatusCode != 403 || !strings.Contains(body, code) {
				t.Errorf("%s: %s: %d %s, want 403 %s", proto, url, res.StatusCode, body, code)
			}
		}
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+host+"/api/big", nil)
		res, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		<-began
		if _, err := io.CopyN(io.Discard, res.Body, 1<<20); err != nil {
			t.Fatal(err)
		}
		cut := make(chan error, 1)
		go func() { _, err := io.Copy(io.Discard, res.Body); cut <- err }()
		start := time.Now()
		grant()
		if err := <-cut; err == nil {
			t.Errorf("%s: the answer ended well", proto)
		}
		if d := time.Since(start); d > promptly {
			t.Errorf("%s: cut after %v", proto, d)
		} else {
			t.Logf("%s: list applied to client cut off: %v", proto, d)
		}
		res.Body.Close()
		if res, body := do(t, c, "GET", "https://"+host+"/api/x", nil, nil); res.StatusCode != 403 {
			t.Errorf("%s: after removal: %d %s", proto, res.StatusCode, body)
		}
	}
	// Clients see the cut before the gateway has written its end.
	for deadline := time.Now().Add(5 * time.Second); f.ends() < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d end records with reason, request id and bytes, want 2", f.ends())
		}
	}
	f.audit.mu.Lock()
	defer f.audit.mu.Unlock()
	decisions := map[string]int{}
	for _, r := range f.audit.all {
		if r.Kind == audit.Decision {
			decisions[r.RequestID]++
		}
	}
	for id, n := range decisions {
		if n != 1 {
			t.Errorf("request %s has %d decision records, want 1", id, n)
		}
	}
}

// ends counts the records of cut requests that are complete.
func (f *fixture) ends() (n int) {
	f.audit.mu.Lock()
	defer f.audit.mu.Unlock()
	for _, r := range f.audit.all {
		if r.Kind == audit.End && r.Code == reason.GrantRevoked && r.RequestID != "" && r.BytesOut > 0 {
			n++
		}
	}
	return n
}

// A request that is over at once has one record. One that lasts is recorded
// while it goes on: whoever kills the gateway then does not hide it.
func TestGCR002_M14_ARequestThatLastsIsRecordedMeanwhile(t *testing.T) {
	end := make(chan struct{})
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/long" {
			<-end
		}
		_, _ = io.WriteString(w, "fine")
	}))
	_, grant := live(t, f, "APP00000001")
	grant("APP00000001")
	var g sync.WaitGroup
	defer g.Wait()
	for _, proto := range protocols {
		c := f.client(proto)
		do(t, c, "GET", "https://"+host+"/api/short", nil, nil)
		g.Go(func() { do(t, c, "GET", "https://"+host+"/api/long", nil, nil) })
	}
	defer close(end)
	decided := func() (n int) {
		f.audit.mu.Lock()
		defer f.audit.mu.Unlock()
		for _, r := range f.audit.all {
			switch {
			case r.Path == "/api/short" && r.Kind != audit.End:
				t.Errorf("a record of the short request: %+v", r)
			case r.Path == "/api/long" && (r.Kind != audit.Decision || r.RequestID == "" || r.Suite == ""):
				t.Errorf("a record of the long request: %+v", r)
			case r.Path == "/api/long":
				n++
			}
		}
		return n
	}
	for deadline := time.Now().Add(20 * time.Second); decided() < len(protocols); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d requests that go on are recorded, want %d", decided(), len(protocols))
		}
	}
}
