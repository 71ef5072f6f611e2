package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/memnet"
	"github.com/yumen-zt/yumen/test/roles"
)

const (
	password = "correct horse 1"
	address  = "control.test:8443"
)

// world is a site on a network in memory, in a bubble.
type world struct {
	t    *testing.T
	net  *memnet.Network
	site *roles.Site
	gw   *roles.Gateway
	ag   *roles.Agent
	user string // another than the agent's, to be locked out

	mu     sync.Mutex
	sent   map[string]int           // guarded by mu; by table: answered
	failed int                      // guarded by mu
	worst  map[string]time.Duration // guarded by mu; by table, of what was not made in an outage
	alerts map[string]time.Time     // guarded by mu; by number, when raised
}

// inBubble runs f with a site whose gateway and agent are connected.
func inBubble(t *testing.T, edit func(*control.Config), f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: memnet.New(memnet.Config{}), sent: map[string]int{}, worst: map[string]time.Duration{}, alerts: map[string]time.Time{}}
		var err error
		w.site, err = roles.New(roles.Config{Dir: t.TempDir(), Address: address, Listen: w.net.Listen, Dial: w.net.Dial, Control: func(c *control.Config) {
			c.AllowChaos, c.TokenLife, c.SessionLife = true, 12*time.Hour, 240*time.Hour
			if edit != nil {
				edit(c)
			}
		}})
		w.must(err)
		w.must(w.site.Start())
		defer func() { w.must(w.site.Stop()) }()
		ctx := t.Context()
		alice, err := w.site.User(ctx, "alice", password)
		w.must(err)
		w.user, err = w.site.User(ctx, "bob", password)
		w.must(err)
		var done control.Done
		w.must(w.site.Do(ctx, "POST", "/v1/apps", map[string]any{"name": "portal", "addresses": []string{"192.0.2.9:80"}}, &done))
		w.must(w.site.Do(ctx, "POST", "/v1/grants", control.NewGrant{User: alice, Device: "any", Apps: []string{done.ID}}, nil))
		gp, err := w.site.Enrol(ctx, "gateway", "gateway")
		w.must(err)
		ap, err := w.site.Enrol(ctx, "agent", "agent")
		w.must(err)
		w.gw, err = w.site.Gateway(gp, func(c *ctlclient.GatewayConfig) { c.Delivered = w.delivered })
		w.must(err)
		defer func() { w.must(w.gw.Stop()) }()
		w.ag, err = w.site.Agent(ctx, ap, "alice", password, func(c *ctlclient.AgentConfig) { c.Delivered = w.delivered })
		w.must(err)
		defer func() { w.must(w.ag.Stop()) }()
		time.Sleep(time.Minute)
		if st := w.gw.Status(); !st.Connected || !st.Push {
			t.Fatalf("gateway after a minute: %+v", st)
		}
		f(w)
	})
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) delivered(d ctlclient.Delivery) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d.Err != nil {
		w.failed++
		return
	}
	w.sent[d.Type]++
	if !d.Outage {
		w.worst[d.Type] = max(w.worst[d.Type], d.Took)
	}
}

// raise raises numbered alerts at the gateway and at the agent.
func (w *world) raise() {
	w.mu.Lock()
	n := len(w.alerts)
	gw, ag := fmt.Sprintf("number g%06d.", n), fmt.Sprintf("number a%06d.", n)
	w.alerts[gw], w.alerts[ag] = time.Now(), time.Now()
	w.mu.Unlock()
	w.gw.Raise(alert.Alert{Code: alert.AppDown, Detail: gw})
	w.ag.Raise(alert.Alert{Code: alert.TunnelFault, Detail: ag})
}

// arrivals returns when each numbered alert arrived, and fails when one came
// twice, or with another time than its own.
func (w *world) arrivals() map[string]time.Time {
	w.t.Helper()
	all, err := w.site.Arrivals()
	w.must(err)
	got, ids := map[string]time.Time{}, map[string]bool{}
	for _, a := range all {
		if a.MsgID == "" {
			continue // how far an outbox is
		}
		if ids[a.Sender+a.MsgID] {
			w.t.Errorf("message %s of %s was kept twice", a.MsgID, a.Sender)
		}
		ids[a.Sender+a.MsgID] = true
		i := strings.Index(a.Content, "number ")
		if i < 0 {
			continue
		}
		name := a.Content[i : i+len("number g000000.")]
		if _, twice := got[name]; twice {
			w.t.Errorf("alert %q arrived twice", name)
		}
		got[name] = a.Received
		at, err := time.Parse(time.RFC3339, a.Time)
		if err != nil || at.Sub(w.alerts[name]).Abs() > time.Second {
			w.t.Errorf("alert %q has the time %s, it was raised at %v", name, a.Time, w.alerts[name])
		}
	}
	return got
}

// complete fails unless everything that was reported arrived, and once.
func (w *world) complete() {
	w.t.Helper()
	got := w.arrivals()
	w.mu.Lock()
	defer w.mu.Unlock()
	missing := 0
	for name := range w.alerts {
		if _, ok := got[name]; !ok {
			missing++
		}
	}
	if missing > 0 {
		w.t.Errorf("%d of %d alerts are missing", missing, len(w.alerts))
	}
	for _, p := range []struct {
		party   string
		stats   [ctlclient.NumClasses]ctlclient.ClassStats
		tables  [2]string
		dropped uint64
	}{
		{w.gw.Party.ID, w.gw.Status().Outbox, [2]string{"T4", "T10"}, w.gw.Status().AlertsRefused + w.gw.Status().Rejected},
		{w.ag.Party.ID, w.ag.Status().Outbox, [2]string{"T16", "T21"}, w.ag.Status().AlertsRefused + w.ag.Status().Rejected},
	} {
		for c, s := range p.stats {
			if s.Pending != 0 || s.Dropped != 0 || s.Appended != s.Acked {
				w.t.Errorf("outbox of %s, %v: %+v", p.party, ctlclient.Class(c), s)
			}
		}
		if p.dropped != 0 {
			w.t.Errorf("%s: %d refused", p.party, p.dropped)
		}
		status, _ := w.site.Record.Taken(p.party, p.tables[1])
		// Those of an agent's X.report (T16 and T21 in one) do not wait in the outbox.
		if made := p.stats[ctlclient.ClassStatus].Appended; uint64(status) < made || p.tables[1] == "T10" && uint64(status) != made {
			w.t.Errorf("%s: %d statuses had an effect, %d were made", p.party, status, p.stats[ctlclient.ClassStatus].Appended)
		}
		identity, _ := w.site.Record.Taken(p.party, p.tables[0])
		made := p.stats[ctlclient.ClassIdentity].Appended
		if uint64(identity) < made {
			w.t.Errorf("%s: %d identity reports had an effect, %d of the outage were made", p.party, identity, made)
		}
		w.t.Logf("%s: %d identity reports (%d of outages), %d statuses, %d alerts: missing 0, doubled 0", p.party, identity, made, status, p.stats[ctlclient.ClassAlert].Acked)
	}
}

// settle waits until both outboxes are empty.
func (w *world) settle(limit time.Duration) time.Duration {
	w.t.Helper()
	began := time.Now()
	for {
		pending := 0
		for _, s := range [][ctlclient.NumClasses]ctlclient.ClassStats{w.gw.Status().Outbox, w.ag.Status().Outbox} {
			for _, c := range s {
				pending += c.Pending
			}
		}
		took := time.Since(began)
		if pending == 0 {
			return took
		}
		if took > limit {
			w.t.Fatalf("%d records wait %v later: %+v %+v", pending, took, w.gw.Status(), w.ag.Status())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// every calls f each d until stop is called, which waits for it.
func every(d time.Duration, f func()) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(d)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				f()
			}
		}
	}()
	return func() { cancel(); <-done }
}

// lock locks the user out and waits for the gateway; it returns how long that
// took.
func (w *world) lock(limit time.Duration) time.Duration {
	w.t.Helper()
	began := time.Now()
	errs := make(chan error, 1)
	go func() {
		errs <- w.site.Do(context.Background(), "POST", "/v1/locks", control.NewLock{Kind: "user", ID: w.user}, nil)
	}()
	if !w.gw.Await(limit, roles.IsLocked(w.user)) {
		w.t.Errorf("the revocation was not there after %v: %+v", limit, w.gw.Status())
	}
	took := time.Since(began)
	w.must(errors.Join(<-errs))
	return took
}

func (w *world) unlock() {
	w.t.Helper()
	w.must(w.site.Do(context.Background(), "DELETE", "/v1/locks/user/"+w.user, nil, nil))
}
