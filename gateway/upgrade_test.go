package gateway

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// upgrade puts another gateway in the place of the one that runs, which drains.
// old tells how that one ended.
func (w *world) upgrade() (old <-chan error) {
	w.t.Helper()
	before := w.stop
	g, err := New(w.t.Context(), filepath.Join(w.dir, "gateway.yaml"), Options{Logger: zap.NewNop(), TakeOver: true})
	must(w.t, err)
	ended := make(chan error, 1)
	go func() { ended <- before() }()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	w.g = g
	stopped := false
	w.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	w.t.Cleanup(func() {
		if err := w.stop(); err != nil {
			w.t.Errorf("run: %v", err)
		}
	})
	return ended
}

// cutWithin wants a download to fail soon, and returns how long it took.
func cutWithin(t *testing.T, what string, end <-chan error, do func()) {
	t.Helper()
	start := time.Now()
	do()
	select {
	case err := <-end:
		if err == nil {
			t.Errorf("%s: the answer ended well", what)
		}
		t.Logf("%s: the old process cut after %v", what, time.Since(start))
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: the old process serves on", what)
	}
}

func goesOn(t *testing.T, what string, end <-chan error) {
	t.Helper()
	select {
	case err := <-end:
		t.Fatalf("%s: cut, too: %v", what, err)
	default:
	}
}

// What a person loses while the old process drains ends there as well: by list
// files, by the operator, by a reload of the configuration.
func TestR12_RightsEndInTheProcessThatDrains(t *testing.T) {
	w := newWorld(t)
	both := user + " " + dev + " " + app1 + "," + app2
	w.lists(1, 1, both)
	w.start()
	alice := w.client(w.alice())
	one, two, three := w.download(alice, "https://one.test/big"), w.download(alice, "https://two.test/big"), w.download(alice, "https://two.test/big")
	old := w.upgrade()
	for what, end := range map[string]<-chan error{"one": one, "two": two, "three": three} {
		goesOn(t, what, end)
	}
	cutWithin(t, "a list without the application", one, func() {
		w.lists(2, 1, user+" "+dev+" "+app2)
		must(t, w.admin(http.MethodPost, "/reload", nil, nil))
	})
	goesOn(t, "two", two)
	cutWithin(t, "a configuration without the application", two, func() {
		w.config(oneApp)
		must(t, w.admin(http.MethodPost, "/reload", nil, nil))
	})
	<-three
	select {
	case err := <-old:
		must(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("the old process has nothing to do, and goes on")
	}
}

func TestR12_TheOperatorCutsInBothProcesses(t *testing.T) {
	w := newWorld(t)
	w.lists(1, 1, user+" "+dev+" "+app1+","+app2)
	w.start()
	alice := w.client(w.alice())
	one, two := w.download(alice, "https://one.test/big"), w.download(alice, "https://two.test/big")
	first := w.upgrade()
	second := w.upgrade() // a third process, while the first one drains still
	cutWithin(t, "sessions cut --app", one, func() { must(t, w.admin(http.MethodPost, "/sessions/cut", CutRequest{AppID: app1}, nil)) })
	goesOn(t, "two", two)
	cutWithin(t, "sessions cut --user", two, func() { must(t, w.admin(http.MethodPost, "/sessions/cut", CutRequest{UserID: user}, nil)) })
	must(t, <-first)
	must(t, <-second)
}

// The control center's whole lists and its deltas; log-outs and alerts of the
// old process reach the new one's store and link.
func TestR12_WhatTheControlCenterTakesAwayEndsInTheProcessThatDrains(t *testing.T) {
	w := newWorld(t)
	managed := strings.ReplaceAll(twoApps, "    hosts:", "    refuse_browser: true\n    hosts:")
	c := w.center(managed)
	c.set(wire.GrantsList, 7, w.list(w.control, gwID, wire.GrantsList, 7, user+" "+dev+" "+app1+","+app2))
	c.set(wire.PoliciesList, 3, w.list(w.control, gwID, wire.PoliciesList, 3))
	w.start()
	await(t, 20*time.Second, "list", func() bool { return w.g.access.Stats().Rows == 1 && !w.g.access.Stats().NoList })
	alice := w.client(w.alice())
	one, two := w.download(alice, "https://one.test/big"), w.download(alice, "https://two.test/big")
	before := w.g
	old := w.upgrade()
	before.loggedOut("sid-1", time.Now().Add(time.Hour))
	before.alerts.Raise(alert.Alert{Code: alert.ConnectionFlood, Reason: reason.AcceptLimit, Detail: "of the old one"})
	await(t, 10*time.Second, "log-out", func() bool {
		return slices.Contains(w.g.access.Revocations(), access.Revocation{SessionID: "sid-1"})
	})
	raw, err := os.ReadFile(filepath.Join(w.dir, "state", "revoked.jsonl"))
	if err != nil || !strings.Contains(string(raw), "sid-1") {
		t.Errorf("stored revocations: %s %v", raw, err)
	}
	await(t, 20*time.Second, "alert", func() bool {
		m := c.last("T11")
		return m != nil && strings.Contains(string(m.Body), "of the old one")
	})
	await(t, 20*time.Second, "link", func() bool { return w.g.link.Status().Connected })
	goesOn(t, "one", one)
	cutWithin(t, "a whole list", one, func() {
		c.set(wire.GrantsList, 8, w.list(w.control, gwID, wire.GrantsList, 8, user+" "+dev+" "+app2))
		w.g.link.Sync()
	})
	goesOn(t, "two", two)
	await(t, 10*time.Second, "version 8 in the old process", func() bool { v, _ := before.access.Snapshot().Version(); return v == 8 })
	cutWithin(t, "a row that a delta replaces", two, func() {
		row := ctlclient.GrantRow{Grant: wire.Grant{UserID: user, DeviceID: dev, AuthenticationToken: "tok00000000", ExpirationDate: "2099-01-01T00:00:00Z", AppIDList: []string{app1}}}
		must(t, w.g.lists.Delta(t.Context(), &ctlclient.Delta{From: 8, To: 9, Rows: []ctlclient.GrantRow{row}}))
	})
	must(t, <-old)
}

// A process that drains does not outlive the one that would tell it of rights
// that end.
func TestR12_WithoutTheNewProcessTheOldOneEnds(t *testing.T) {
	w := newWorld(t)
	w.start()
	one := w.download(w.client(w.alice()), "https://one.test/big")
	old := w.upgrade()
	goesOn(t, "one", one)
	cutWithin(t, "the new process ends", one, func() { must(t, w.stop()) })
	must(t, <-old)
}

// What the old process does not understand may be a right that ends.
func TestR12_WhatCannotBeReadEndsTheRest(t *testing.T) {
	w := newWorld(t)
	w.start()
	one := w.download(w.client(w.alice()), "https://one.test/big")
	old := w.upgrade()
	goesOn(t, "one", one)
	cutWithin(t, "a notice of another version", one, func() { _, err := w.g.inherited.conn.Write([]byte("{\"what\":1}\n")); must(t, err) })
	must(t, <-old)
}
