package proxy

import (
	"testing"
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/reason"
)

// Locking somebody revokes his sign-ins, too. He must read the administrator's
// words then, not the sign-in page again and again.
func TestARevokedSessionOfALockedSubjectIsToldOfTheLock(t *testing.T) {
	now := time.Now()
	browser := policy.Facts{SessionID: "S1", UserID: "USR00000001", Browser: true, AuthTime: now}
	device := policy.Facts{SessionID: "S2", UserID: "USR00000001", DeviceID: "DEV00000001", AuthTime: now}
	for _, c := range []struct {
		name  string
		facts policy.Facts
		locks []policy.Lock
		want  access.Refusal
	}{
		{"no lock", browser, nil, access.Refusal{Reason: reason.SessionRevoked}},
		{"user", browser, []policy.Lock{{Kind: "user", ID: "USR00000001", Message: "call 8000"}}, access.Refusal{Reason: reason.Locked, Message: "call 8000"}},
		{"device", device, []policy.Lock{{Kind: "device", ID: "DEV00000001", Message: "stolen"}}, access.Refusal{Reason: reason.Locked, Message: "stolen"}},
		{"another's", browser, []policy.Lock{{Kind: "user", ID: "USR00000002", Message: "x"}, {Kind: "device", ID: "USR00000001"}, {Kind: "device"}}, access.Refusal{Reason: reason.SessionRevoked}},
		{"over", browser, []policy.Lock{{Kind: "user", ID: "USR00000001", Until: now.Add(-time.Minute)}}, access.Refusal{Reason: reason.SessionRevoked}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := access.New(access.Config{GatewayID: "GW000000001"})
			a.Narrow(access.Delta{Locks: c.locks, Revoke: []access.Revocation{{UserID: "USR00000001", IssuedBefore: now.Add(time.Minute)}}})
			l, no := liveGate{a}.acquire(c.facts, a.App("APP00000001"), &policy.Request{}, carrier{&Exchange{}})
			if l != nil || no != c.want {
				t.Errorf("refused %+v, want %+v", no, c.want)
			}
		})
	}
}
