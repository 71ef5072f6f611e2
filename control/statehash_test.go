package control

import (
	"strconv"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/wire"
)

// withExt sends a message with fields in its header's ext and returns the ext
// of the answer.
func (c *client) withExt(path, msgType string, body any, ext map[string]any) map[string]jsontext.Value {
	c.w.t.Helper()
	raw := map[string]jsontext.Value{}
	for k, v := range ext {
		b, err := json.Marshal(v)
		if err != nil {
			c.w.t.Fatal(err)
		}
		raw[k] = b
	}
	plain, err := json.Marshal(body)
	if err != nil {
		c.w.t.Fatal(err)
	}
	env, err := c.send.Seal(envelope.Header{MsgType: msgType, Receiver: "CTL00000001", Ext: raw}, plain, c.control)
	if err != nil {
		c.w.t.Fatal(err)
	}
	if status, answer := c.post(path, env); status != 200 {
		c.w.t.Fatalf("%s: %d %s", msgType, status, answer)
	}
	return c.answered.Header.Ext
}

// S4: Table 5 answers the nonce of Table 4 with the newest versions.
func TestS4_Table5CarriesTheNonceAndTheNewestVersions(t *testing.T) {
	s := newSite(t)
	ext := s.gw.withExt("/identity", "T4", s.gw.t4(), map[string]any{wire.ExtNonce: "abcdefghijklmnopqrstuv=="})
	st := s.s.Status()
	if extText(ext, wire.ExtNonce) != "abcdefghijklmnopqrstuv==" || extText(ext, wire.ExtListVersion) != strconv.FormatUint(st.GrantsVersion, 10) || extText(ext, wire.ExtPolicyVersion) != strconv.FormatUint(st.PoliciesVersion, 10) {
		t.Errorf("ext %v, versions %d and %d", ext, st.GrantsVersion, st.PoliciesVersion)
	}
}

// The sums follow every kind of change: they are those of the lists as a
// gateway reads them, and a report of something else is noticed once settled.
func TestStateHashFollowsTheLists(t *testing.T) {
	c := &movedClock{}
	s := newSite(t, func(cfg *Config) { cfg.Now = c.Now })
	same := func(what string) wire.StateHash {
		t.Helper()
		var grants, policies wire.Sum
		g := s.gw.pull(wire.GrantsList)
		for i := range g.grants {
			grants = grants.Add(wire.RowSum(wire.GrantDigest(&g.grants[i], &g.facts[i])))
		}
		p := s.gw.pull(wire.PoliciesList)
		for i := range p.policies {
			policies = policies.Add(wire.RowSum(wire.PolicyDigest(&p.policies[i])))
		}
		for i := range p.manifest.Locks {
			policies = policies.Add(wire.RowSum(wire.LockDigest(&p.manifest.Locks[i])))
		}
		var h wire.StateHash
		s.s.view(func(st *model.State) {
			h = wire.StateHash{Grants: wire.VersionHash{Version: st.GrantsVersion, Hash: st.GrantsSum.String()}, Policies: wire.VersionHash{Version: st.PoliciesVersion, Hash: st.PoliciesSum.String()}}
		})
		if h.Grants.Hash != grants.String() || h.Policies.Hash != policies.String() || g.manifest.Version != h.Grants.Version {
			t.Errorf("%s: the state says %+v, the lists %s (version %d) and %s", what, h, grants, g.manifest.Version, policies)
		}
		return h
	}
	first := same("at first")
	s.signIn()
	same("signed in")
	bulkRows(t, s.s, 500)
	past := same("many rows")
	s.do("POST", "/v1/policies", wire.Policy{PolicyName: "level", PolicyType: "level", PolicyData: ">=1"}, nil)
	s.do("POST", "/v1/locks", NewLock{Kind: "app", ID: s.app, Message: "停用"}, nil)
	same("a policy and a lock")
	s.do("DELETE", "/v1/locks/app/"+s.app, nil, nil)
	s.do("POST", "/v1/locks", NewLock{Kind: "user", ID: "alice"}, nil)
	same("a user locked")
	s.stop()
	s.start()
	s.gw.base = s.url(0) + gatewayBase
	s.gw.identify()
	now := same("after a restart")

	status := func() wire.GatewayStatus {
		return wire.GatewayStatus{GatewayID: s.gw.id, DeviceID: s.gw.device, Timestamp: wire.FormatTime(c.Now()), CPUUsage: "001.00%", MemoryUsage: "001.00%", DiskUsage: "001.00%"}
	}
	differs := func(h wire.StateHash, m wire.GatewayStatus) string {
		t.Helper()
		return string(s.gw.withExt("/status", "T10", m, map[string]any{wire.ExtStateHash: h})[wire.ExtDiffers])
	}
	c.move(settle + time.Second)
	wrong := now
	wrong.Grants.Hash = first.Grants.Hash
	old := status()
	old.Timestamp = wire.FormatTime(c.Now().Add(-replayed - time.Second))
	for _, step := range []struct {
		what string
		h    wire.StateHash
		m    wire.GatewayStatus
		want string
	}{
		{"the same", now, status(), ""},
		{"a version of before the restart, not kept", past, status(), ""},
		{"a report of the past", wrong, old, ""},
		{"other grants", wrong, status(), `["grants"]`},
		{"other grants, ordered before", wrong, status(), ""},
		{"other policies", wire.StateHash{Grants: now.Grants, Policies: wire.VersionHash{Version: now.Policies.Version, Hash: "00"}}, status(), `["policies"]`},
	} {
		if got := differs(step.h, step.m); got != step.want {
			t.Errorf("%s: differs %q, want %q", step.what, got, step.want)
		}
	}
	st := s.s.Status()
	if st.Differed != 3 || st.Gateways[0].Differed != 3 {
		t.Errorf("counted %d and %d, want 3", st.Differed, st.Gateways[0].Differed)
	}
	// A change under way is not a difference; a past version that is kept is compared.
	s.do("POST", "/v1/locks", NewLock{Kind: "session", ID: "S1"}, nil)
	h := same("another lock")
	h.Policies.Hash = "00"
	if got := differs(h, status()); got != "" {
		t.Errorf("within %v of the change: %q", settle, got)
	}
	s.do("DELETE", "/v1/locks/user/alice", nil, nil)
	c.move(settle + time.Second)
	h.Grants.Hash = "00"
	if got := differs(h, status()); got != `["grants"]` {
		t.Errorf("a past version with other grants: %q", got)
	}
}

// A person who signs out at one gateway is out at the others: those that are
// connected at once, the others when they come.
func TestGCR002_M119_LogoutReachesEveryGateway(t *testing.T) {
	s := newSite(t)
	other := s.enrol(NewDevice{Kind: "gateway"})
	other.identify()
	p := other.stream("").begun()
	logout := wire.Logout{SessionID: "sid0000abcde", Until: wire.FormatTime(time.Now().Add(time.Hour))}
	start := time.Now()
	if status, body := s.gw.message("/logouts", wire.TypeLogout, logout); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	d, _ := p.delta()
	t.Logf("log-out → revocation verified at the other gateway: %v", time.Since(start))
	if len(d.Revoke) != 1 || d.Revoke[0].SessionID != logout.SessionID || d.Revoke[0].UserID != "" {
		t.Errorf("delta %+v", d)
	}
	late := s.enrol(NewDevice{Kind: "gateway"})
	late.identify()
	if d, _ := late.stream("").delta(); len(d.Revoke) != 1 || d.Revoke[0].SessionID != logout.SessionID {
		t.Errorf("a gateway that comes later gets %+v", d)
	}
	for _, bad := range []wire.Logout{{Until: logout.Until}, {SessionID: "a/b", Until: logout.Until}, {SessionID: "a", Until: "soon"}} {
		if status, _ := s.gw.message("/logouts", wire.TypeLogout, bad); status != 400 {
			t.Errorf("taken: %+v", bad)
		}
	}
}
