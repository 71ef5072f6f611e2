package gateway

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/apps/link"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// demanding is app1, which is offline until its connector says otherwise.
const demanding = oneApp + "    demand_identity: true\napp_link: {host: login.test}\n"

// connector reports for app1 through the gateway's port.
func (w *world) connector(keys *keystore.Store, p profile.Profile) *link.Client {
	w.t.Helper()
	c, err := link.NewClient(link.ClientConfig{
		URL: "https://login.test", Address: w.addr, Keys: keys, Crypto: p, Now: w.now,
		Service: strings.TrimPrefix(w.upstream.URL, "http://"),
	})
	must(w.t, err)
	return c
}

// The connector's way through the gateway's own port, over TLCP and over TLS:
// Table 1 puts an application online, its end offline, and so does its silence.
func TestGCR002_M29_M30_ConnectorThroughThePort(t *testing.T) {
	for _, c := range []struct {
		profile profile.Profile
		refused profile.Profile // a connector of this one does not get in
		says    string
	}{
		{profile.GM, profile.Intl, "refuses TLS"},
		{profile.Mixed, "", ""},
		{profile.Intl, profile.GM, "speaks no TLCP"},
	} {
		t.Run(c.profile.String(), func(t *testing.T) {
			w := newWorld(t)
			var ahead atomic.Int64
			w.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
			w.config(demanding + "crypto: {profile: " + c.profile.String() + "}\n")
			w.start()
			user := w.client(w.alice())
			if c.profile.TLCP() {
				user = w.tlcpClient(w.tlcpAlice(), false)
			}
			online := func(what string) {
				t.Helper()
				if status, body := w.get(user, "https://"+host1+"/"); status != 200 {
					t.Errorf("%s: %d %.200s, want 200", what, status, body)
				}
			}
			offline := func(what string) {
				t.Helper()
				if status, body := w.get(user, "https://"+host1+"/"); status != 503 || !strings.Contains(body, reason.AppOffline.Code()) {
					t.Errorf("%s: %d %.200s, want 503 %s", what, status, body, reason.AppOffline.Code())
				}
			}
			offline("before Table 1")
			keys := w.party(w.ca, "connector", certid.Identity{App: app1})
			if c.refused != "" {
				if _, err := w.connector(keys, c.refused).Report(t.Context(), wire.Online); err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("a connector of profile %s: %v, want it to say %q", c.refused, err, c.says)
				}
				offline("after a connector of the other protocol")
			}

			// As `yumen app run` does it.
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			done := make(chan error, 1)
			conn := w.connector(keys, c.profile)
			go func() { done <- conn.Run(ctx) }()
			w.audited(`"object":"T1"`)
			online("its connector runs")
			stop()
			must(t, <-done)
			offline("its connector has ended")

			// Silence: it counts for two periods of 60 s, and not longer.
			t2, err := conn.Report(t.Context(), wire.Online)
			must(t, err)
			if until, err := wire.ParseTime(t2.Expiry); err != nil || until.Sub(w.now()) > link.Life || until.Sub(w.now()) < link.Life-20*time.Second {
				t.Errorf("expiry %s, %v", t2.Expiry, err)
			}
			online("reported")
			ahead.Add(int64(link.Life - 30*time.Second))
			online("30 s before the end")
			before := w.raised(alert.AppDown)
			ahead.Add(int64(31 * time.Second))
			offline("after the end")
			w.g.appLink.Check() // which a clock of its own calls every 5 s
			for range 500 {
				if w.raised(alert.AppDown) > before {
					break
				}
				time.Sleep(10 * time.Millisecond) // another goroutine's progress: nothing to wait on
			}
			if got := w.raised(alert.AppDown); got != before+1 {
				t.Errorf("%d alerts of the silence, want 1", got-before)
			}
			if _, err := conn.Report(t.Context(), wire.Online); err != nil {
				t.Errorf("after the silence: %v", err)
			}
			online("it speaks again")
		})
	}
}

// Nobody but the application itself has a channel to its interface: a device's
// certificate is refused, by either protocol.
func TestConnectorOfAnother(t *testing.T) {
	w := newWorld(t)
	w.config(demanding)
	w.start()
	agent := w.party(w.ca, "agent", certid.Identity{Agent: "AGT00000001", Device: dev})
	if _, err := link.NewClient(link.ClientConfig{URL: "https://login.test", Address: w.addr, Keys: agent, Service: "127.0.0.1:1"}); err == nil || !strings.Contains(err.Error(), "not an application's") {
		t.Errorf("keys of an agent: %v", err)
	}
	other := w.party(w.ca, "other", certid.Identity{App: app2})
	if _, err := w.connector(other, profile.GM).Report(t.Context(), wire.Online); err == nil || !strings.Contains(err.Error(), reason.AppUnknown.Result()) {
		t.Errorf("an application that is not registered here: %v", err)
	}
	if status, _ := w.get(w.client(w.alice()), "https://"+host1+"/"); status != 503 {
		t.Errorf("status %d after another's report", status)
	}
	if status, _ := w.get(w.client(w.alice()), "https://login.test"+link.IdentityPath); status != 401 {
		t.Errorf("a device's certificate: status %d", status)
	}
}
