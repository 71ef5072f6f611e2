package control

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestAdminErrorsTellTheRemedy(t *testing.T) {
	w := newWorld(t)
	w.user("alice")
	app := w.app("wiki", "10.0.0.5:443")
	for name, v := range map[string]struct {
		method, path string
		in           any
		want         string
	}{
		"unknown user":       {"POST", "/v1/grants", NewGrant{User: "bob", Apps: []string{app}}, "user list"},
		"unknown app":        {"POST", "/v1/grants", NewGrant{User: "alice", Apps: []string{"APP99999999"}}, "app list"},
		"no app":             {"POST", "/v1/grants", NewGrant{User: "alice"}, "at least one"},
		"over":               {"POST", "/v1/grants", NewGrant{User: "alice", Apps: []string{app}, Until: time.Unix(1, 0)}, "it is over"},
		"unknown device":     {"POST", "/v1/grants", NewGrant{User: "alice", Device: "DEV99999999", Apps: []string{app}}, "any or browser"},
		"name taken":         {"POST", "/v1/users", NewUser{Name: "ALICE", Password: password}, "another name"},
		"weak password":      {"POST", "/v1/users", NewUser{Name: "x", Password: "short"}, "10 characters"},
		"id taken":           {"POST", "/v1/users", NewUser{ID: "USR00000001", Name: "x", Password: password}, "exists already"},
		"short id":           {"POST", "/v1/users", NewUser{ID: "U1", Name: "x", Password: password}, "11 characters"},
		"kind":               {"POST", "/v1/devices", NewDevice{Kind: "toaster"}, "gateway, agent or app"},
		"app's connector":    {"POST", "/v1/devices", NewDevice{Kind: "app", ID: "APP99999999"}, "app add"},
		"gateway of a user":  {"POST", "/v1/devices", NewDevice{Kind: "gateway", User: "alice"}, "only an agent"},
		"address":            {"POST", "/v1/apps", map[string]any{"name": "x", "addresses": []string{"wiki:443"}}, "IP:port"},
		"lock of what":       {"POST", "/v1/locks", NewLock{Kind: "planet", ID: "x"}, "user, device, agent"},
		"no such lock":       {"DELETE", "/v1/locks/user/alice", nil, "control locks"},
		"removed long ago":   {"DELETE", "/v1/grants/GRT99999999", nil, "grant list"},
		"a field that is no": {"POST", "/v1/users", map[string]string{"nam": "x"}, "nam"},
	} {
		err := w.admin.Do(t.Context(), v.method, v.path, v.in, nil)
		if err == nil || !strings.Contains(err.Error(), v.want) {
			t.Errorf("%s: %v, want it to say %q", name, err, v.want)
		}
	}
	recs := w.audited("POST /v1/users")
	if len(recs) == 0 || recs[0].UID != strconv.Itoa(os.Getuid()) {
		t.Errorf("audit %+v", recs)
	}
}

// Writers at the same moment get identifiers of their own, and none is lost.
func TestConcurrentAdminsLoseNothing(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids := map[string]bool{}
	for i := range 24 {
		wg.Go(func() {
			var n NewCode
			var err error
			if i%2 == 0 {
				err = w.admin.Do(t.Context(), "POST", "/v1/devices", NewDevice{Kind: "agent"}, &n)
			} else {
				err = w.admin.Do(t.Context(), "POST", "/v1/apps", map[string]any{"name": fmt.Sprint("app ", i)}, &n.Done)
			}
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			ids[n.ID+n.DeviceID] = true
		})
	}
	wg.Wait()
	st := w.s.Status()
	if len(ids) != 24 || st.Devices != 12 || st.Apps != 12 {
		t.Errorf("%d identifiers, %d devices, %d apps", len(ids), st.Devices, st.Apps)
	}
	seen := map[string]bool{}
	for _, p := range w.s.sortedParties() {
		if seen[p.DeviceID] {
			t.Errorf("two parties have %s", p.DeviceID)
		}
		seen[p.DeviceID] = true
	}
}

func TestRemovingAUserCutsEverything(t *testing.T) {
	s := newSite(t)
	s.signIn()
	p := s.gw.stream("").begun()
	s.do("DELETE", "/v1/users/alice", nil, nil)
	d, _ := p.delta()
	if len(d.Remove) != 1 || len(d.Revoke) != 1 {
		t.Errorf("delta %+v", d)
	}
	if st := s.s.Status(); st.Users+st.Grants+st.Rows+st.Sessions != 0 {
		t.Errorf("status %+v", st)
	}
}

func TestNewPasswordEndsSignIns(t *testing.T) {
	s := newSite(t)
	s.signIn()
	p := s.gw.stream("").begun()
	s.do("PUT", "/v1/users/alice/password", map[string]string{"password": "another horse 2"}, nil)
	if d, _ := p.delta(); len(d.Remove) != 1 || len(d.Revoke) != 1 {
		t.Errorf("delta %+v", d)
	}
	if status, _ := s.agent.login(s.alice, password); status != 400 {
		t.Errorf("old password: %d", status)
	}
	if status, _ := s.agent.login(s.alice, "another horse 2"); status != 200 {
		t.Errorf("new password: %d", status)
	}
	p.delta()
	s.do("DELETE", "/v1/sessions/"+s.alice+"/"+s.agent.device, nil, nil)
	if d, _ := p.delta(); len(d.Remove) != 1 || len(d.Locks) != 0 {
		t.Errorf("sign-out: %+v", d)
	}
}

func TestSignOutTakesNames(t *testing.T) {
	s := newSite(t)
	name := s.s.party(s.agent.id).Name // the gateway has the same
	if err := s.admin.Do(t.Context(), "DELETE", "/v1/sessions/alice/"+name, nil, nil); err == nil || !strings.Contains(err.Error(), s.gw.id) || !strings.Contains(err.Error(), s.agent.id) {
		t.Errorf("a name that two devices have: %v, want both identifiers", err)
	}
	s.do("DELETE", "/v1/devices/"+s.gw.id, nil, nil)
	for _, device := range []string{s.agent.device, s.agent.id, name} {
		s.signIn()
		var d Done
		s.do("DELETE", "/v1/sessions/alice/"+device, nil, &d)
		if d.ID != s.alice+" "+s.agent.device || s.s.Status().Sessions != 0 {
			t.Errorf("alice on %s: %+v, %d sessions", device, d, s.s.Status().Sessions)
		}
		if err := s.admin.Do(t.Context(), "DELETE", "/v1/sessions/alice/"+device, nil, nil); err == nil || !strings.Contains(err.Error(), "control sessions") {
			t.Errorf("a second time on %s: %v", device, err)
		}
	}
}

func TestPostureAndRiskReachTheRow(t *testing.T) {
	s := newSite(t)
	s.signIn()
	p := s.gw.stream("").begun()
	ninety, ten := 90, 10
	s.do("PUT", "/v1/devices/"+s.agent.id+"/facts", Facts{Posture: &ninety, Risk: &ten}, nil)
	if d, _ := p.delta(); len(d.Ext) != 1 || *d.Ext[0].Posture != 90 || *d.Ext[0].Risk != 10 {
		t.Errorf("delta %+v", d)
	}
}

func TestEventsShowWhatHappens(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Audit = nil })
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.cfg.AdminSocket)
	}}}
	t.Cleanup(hc.CloseIdleConnections)
	resp, err := hc.Get("http://local/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	s.do("POST", "/v1/locks", NewLock{Kind: "session", ID: "marker"}, nil)
	in := bufio.NewScanner(resp.Body)
	for in.Scan() {
		if strings.Contains(in.Text(), "session marker") {
			return
		}
	}
	t.Errorf("the lock does not show: %v", in.Err())
}
