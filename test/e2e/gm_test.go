package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/test/testbed"
	"github.com/yumen-zt/yumen/tunnel/carrier"
)

// With crypto.profile gm the reports of gateway and agent reach the control
// center over TLCP with forward secrecy alone: identity, status, alerts.
func TestGCR002_M5_M50_ReportsUnderGM(t *testing.T) {
	t.Parallel()
	w := worlds[gmOnly](t)
	u, b, a := w.newcomer(t, "gmreports", time.Time{})
	for range 3 { // worth an alert
		r, err := http.NewRequestWithContext(within(t, time.Minute), "GET", w.URL("web", "/"), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header["X_Bad"] = []string{"1"}
		resp, err := b.Client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	for _, table := range []string{"T4", "T10", "T11", "T19"} {
		w.ControlAudit.Await(t, 1, table+" over TLCP", func(r *audit.Record) bool {
			return r.Kind == audit.Interface && r.Object == table && r.Allowed && r.Protocol == "tlcp" && r.Suite == "ECDHE_SM4_GCM_SM3"
		})
	}
	// And nothing came over anything else.
	for _, r := range w.ControlAudit.Find(t, func(r *audit.Record) bool {
		return r.Kind == audit.Interface && r.Allowed && !strings.HasPrefix(r.Object, "enrol") && (r.Protocol != "tlcp" || r.Suite != "ECDHE_SM4_GCM_SM3")
	}) {
		t.Errorf("%s of %s over %q %q", r.Object, r.DeviceID, r.Protocol, r.Suite)
	}
	if st, err := w.Status(); err != nil || st.Profile != "gm" || slices.ContainsFunc(slices.Collect(maps.Keys(st.Protocols)), func(p string) bool { return !strings.HasPrefix(p, "tlcp ") }) {
		t.Errorf("status of the gateway: profile %s, sessions %v, %v", st.Profile, st.Protocols, err)
	}
	if st, err := a.Status(); err != nil || st.Gateway == "" {
		t.Errorf("the tunnel of %s: %+v, %v", u.Name, st, err)
	}
}

// With crypto.profile gm whoever speaks plain TLS is told protocol_version, in
// whatever role he comes; the gateway's log and audit name the reason.
func TestS24_GMRefusesPlainTLS(t *testing.T) {
	t.Parallel()
	w := worlds[gmOnly](t)
	cc, err := control.LoadConfig(w.ControlConfig)
	if err != nil {
		t.Fatal(err)
	}
	center, err := url.Parse(cc.URL)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(w.CA) {
		t.Fatal("no root")
	}
	port := testbed.Loopback(w.v6, w.Port)
	for _, c := range []struct {
		name, at, alpn string
		newest         uint16
		gateway        bool
	}{
		{"browser, TLS 1.3", port, "h2", tls.VersionTLS13, true},
		{"browser, TLS 1.2", port, "http/1.1", tls.VersionTLS12, true},
		{"tunnel", port, carrier.ALPN, tls.VersionTLS13, true},
		{"link to the control center", center.Host, "http/1.1", tls.VersionTLS13, false},
	} {
		name := "tls" + strings.Map(func(r rune) rune { // of its own: the audit is shared
			if r < '0' || r > 'z' {
				return -1
			}
			return r
		}, c.name) + "." + testbed.Domain
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: name, NextProtos: []string{c.alpn}, MaxVersion: c.newest}}).DialContext(ctx, "tcp", c.at)
		cancel()
		if err == nil {
			conn.Close()
			t.Errorf("%s: a handshake by TLS succeeded", c.name)
			continue
		}
		var op *net.OpError
		if !errors.As(err, &op) || op.Op != "remote error" || !strings.Contains(err.Error(), "protocol version") {
			t.Errorf("%s: %v, want the alert protocol_version", c.name, err)
		}
		if !c.gateway {
			continue
		}
		w.GatewayAudit.Await(t, 1, "the refusal of the "+c.name, func(r *audit.Record) bool {
			return r.Kind == audit.Login && !r.Allowed && r.Code == reason.TLSRefused && strings.EqualFold(r.Object, name) && strings.Contains(r.Detail, "the profile is gm")
		})
		testbed.Eventually(t, 10*time.Second, "the log of the "+c.name, func() bool {
			return slices.ContainsFunc(strings.Split(w.Gateway.Output(), "\n"), func(line string) bool {
				return strings.Contains(line, "handshake failed") && strings.Contains(line, `"reason":"tls_refused"`) && strings.Contains(line, strings.ToLower(name))
			})
		})
	}
}
