package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/gateway"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/test/testbed"
)

// inBrowser and inTunnel choose flows.
func inBrowser(f *flow) bool  { return !inTunnel(f) }
func inTunnel(f *flow) bool   { return f.kind == access.TCP || f.kind == access.UDP }
func everything(f *flow) bool { return true }

// Every verb that takes a right away cuts what flows by it, for a reason of its
// own, within two seconds, and nothing else.
func TestGCR002_M57_EveryVerbThatTakesAwayCuts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil, ownLinks)
	type newcomer struct {
		u               *testbed.User
		a               *testbed.Agent
		b               *testbed.Browser
		browser, device string // grants
	}
	lock := func(kind string, id func(*newcomer) string) func(t *testing.T, n *newcomer) {
		return func(t *testing.T, n *newcomer) {
			w.Do("POST", "/v1/locks", control.NewLock{Kind: kind, ID: id(n)}, nil)
			t.Cleanup(func() { _ = w.Admin.Do(context.Background(), "DELETE", "/v1/locks/"+kind+"/"+id(n), nil, nil) }) // some are gone by then
		}
	}
	cut := func(r func(*newcomer) gateway.CutRequest) func(t *testing.T, n *newcomer) {
		return func(t *testing.T, n *newcomer) {
			var reply gateway.CutReply
			if err := w.GatewayAdmin.Do(within(t, 10*time.Second), "POST", "/sessions/cut", r(n), &reply); err != nil || reply.Flows == 0 {
				t.Errorf("sessions cut: %+v, %v", reply, err)
			}
		}
	}
	for _, c := range []struct {
		name string
		do   func(*testing.T, *newcomer)
		cuts func(*flow) bool
		want []reason.Reason
	}{
		{"lock user", lock("user", func(n *newcomer) string { return n.u.ID }), everything, []reason.Reason{reason.Locked}},
		{"lock device", lock("device", func(n *newcomer) string { return n.a.DeviceID }), inTunnel, []reason.Reason{reason.Locked}},
		{"lock agent", lock("agent", func(n *newcomer) string { return n.a.ID }), inTunnel, []reason.Reason{reason.Locked}},
		{"remove the browser's grant", func(t *testing.T, n *newcomer) { w.Do("DELETE", "/v1/grants/"+n.browser, nil, nil) }, inBrowser, []reason.Reason{reason.GrantRevoked, reason.AppNotGranted}},
		{"remove the devices' grant", func(t *testing.T, n *newcomer) { w.Do("DELETE", "/v1/grants/"+n.device, nil, nil) }, inTunnel, []reason.Reason{reason.GrantRevoked, reason.AppNotGranted}},
		{"sign out of the device", func(t *testing.T, n *newcomer) { w.Do("DELETE", "/v1/sessions/"+n.u.ID+"/"+n.a.DeviceID, nil, nil) }, inTunnel, []reason.Reason{reason.GrantRevoked, reason.SessionRevoked}},
		{"another password", func(t *testing.T, n *newcomer) {
			w.Do("PUT", "/v1/users/"+n.u.ID+"/password", map[string]string{"password": "another-Passw0rd"}, nil)
		}, everything, []reason.Reason{reason.SessionRevoked, reason.GrantRevoked}},
		{"remove the user", func(t *testing.T, n *newcomer) { w.Do("DELETE", "/v1/users/"+n.u.ID, nil, nil) }, everything, []reason.Reason{reason.SessionRevoked, reason.GrantRevoked}},
		{"remove the agent", func(t *testing.T, n *newcomer) { w.Do("DELETE", "/v1/devices/"+n.a.ID, nil, nil) }, inTunnel, []reason.Reason{reason.GrantRevoked, reason.SessionRevoked}},
		{"sign out in the browser", func(t *testing.T, n *newcomer) {
			if p, err := n.b.SignOut(within(t, 10*time.Second), "web"); err != nil || p.Status >= 400 {
				t.Errorf("sign out: %v, %+v", err, p)
			}
		}, inBrowser, []reason.Reason{reason.SessionRevoked, reason.LoggedOut}},
		{"operator cuts the user", cut(func(n *newcomer) gateway.CutRequest { return gateway.CutRequest{UserID: n.u.ID} }), everything, []reason.Reason{reason.CutByOperator}},
		{"operator cuts one application", cut(func(n *newcomer) gateway.CutRequest { return gateway.CutRequest{UserID: n.u.ID, AppID: webID} }), inBrowser, []reason.Reason{reason.CutByOperator}},
		{"lock application", lock("app", func(*newcomer) string { return webID }), inBrowser, []reason.Reason{reason.Locked}},
		{"a policy against the address", func(*testing.T, *newcomer) {
			var done control.Done
			w.Do("POST", "/v1/policies", map[string]string{"policyName": "deny", "policyType": "ipdeny", "policyData": "127.0.0.0/8"}, &done)
		}, everything, []reason.Reason{reason.PolicyIPDeny}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := &newcomer{u: w.NewUser(c.name)}
			n.browser, n.device = w.Grant(n.u, "browser", time.Time{}, webID), w.Grant(n.u, "any", time.Time{}, echoID, udpID)
			n.a = w.NewAgent(t, strings.ReplaceAll(strings.ReplaceAll(c.name, " ", ""), "'", ""))
			n.a.SignIn(n.u)
			n.b = w.signedIn(t, n.u, true, "web")
			o := openAll(t, w, n.b, n.a)
			began := time.Now()
			c.do(t, n)
			var lives []*flow
			for _, f := range o.all {
				if !c.cuts(f) {
					lives = append(lives, f)
					continue
				}
				if f.kind == access.UDP && contains(c.want, reason.CutByOperator) {
					continue // the next datagram may begin a new flow; the audit tells of the end of this one
				}
				close(f.hurry)
				select {
				case <-f.ended:
				case <-time.After(10 * time.Second):
					t.Errorf("%s flows on", f.name)
				}
			}
			all := o.all
			o.all = lives
			o.flow(t, "after "+c.name)
			records := w.GatewayAudit.Await(t, len(all)-len(lives), "the ends", func(r *audit.Record) bool {
				return r.Kind == audit.End && r.UserID == n.u.ID && isFlow(r)
			})
			for _, r := range records {
				if !contains(c.want, r.Code) || r.Time.Sub(began) > 2*time.Second {
					t.Errorf("%s %s ended for %s after %v, want one of %v", r.Carrier, r.Path, r.Result, r.Time.Sub(began), c.want)
				}
			}
			t.Logf("%d flows ended for %s, the last after %v", len(records), records[0].Result, records[len(records)-1].Time.Sub(began).Round(time.Millisecond))
			o.close()
		})
	}
}
