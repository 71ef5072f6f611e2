package control

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// Lock, unlock and sign in again, all within one second: the times on the wire
// have no fractions, and the new sign-in is the younger one all the same.
func TestS4_SignInAfterAnUnlockOfTheSameSecondCounts(t *testing.T) {
	c := &movedClock{}
	s := newSite(t, func(cfg *Config) { cfg.Now = c.Now })
	s.signIn()
	p := s.gw.stream("").begun()
	now := c.Now()
	c.move(now.Truncate(time.Second).Add(time.Second).Sub(now)) // a second begins
	s.do("POST", "/v1/locks", NewLock{Kind: "user", ID: "alice"}, nil)
	d, _ := p.delta()
	before, err := wire.ParseTime(d.Revoke[0].IssuedBefore)
	if err != nil || !before.After(c.Now()) {
		t.Fatalf("revoked before %v, %v: want the second that runs within it", before, err)
	}
	p.next("changed")
	s.do("DELETE", "/v1/locks/user/alice", nil, nil)
	p.delta()
	p.next("changed")
	s.signIn()
	d, _ = p.delta()
	at, err := wire.ParseTime(d.Ext[0].AuthTime)
	if err != nil || at.Before(before) {
		t.Errorf("signed in at %v, which a gateway counts as before %v (%v)", at, before, err)
	}
	// The provider's auth_time is taken after the same check.
	s.do("POST", "/v1/locks", NewLock{Kind: "user", ID: "alice"}, nil)
	s.do("DELETE", "/v1/locks/user/alice", nil, nil)
	if _, _, why := s.s.checkPassword(t.Context(), "alice", password, "127.0.0.1:1"); why != reason.OK {
		t.Fatal(why)
	}
	var r model.Revocation
	s.s.view(func(st *model.State) { r = *st.Revocations[s.alice] })
	if c.Now().Before(r.IssuedBefore) {
		t.Errorf("a browser's sign-in is answered at %v, before %v", c.Now(), r.IssuedBefore)
	}
}

// What was proved before a revocation gives no token after it, though the lock
// is gone again: neither a password nor a report that was under way.
func TestS4_ProofsOfBeforeARevocationGiveNothing(t *testing.T) {
	s := newSite(t)
	s.signIn()
	pair := model.Pair{User: s.alice, Device: s.agent.device}
	old, epoch := s.s.session(pair)
	s.do("POST", "/v1/locks", NewLock{Kind: "user", ID: "alice"}, nil)
	s.do("DELETE", "/v1/locks/user/alice", nil, nil)
	if _, err := s.s.putSession(pair, old, epoch); !errors.Is(err, errRevoked) {
		t.Errorf("the old session was stored again: %v", err)
	}
	if n := s.s.Status().Sessions; n != 0 {
		t.Errorf("%d sessions", n)
	}
	s.signIn()
}

func TestSignInThatWaitsEndsWithItsCaller(t *testing.T) {
	c := &movedClock{}
	s := newSite(t, func(cfg *Config) { cfg.Now = c.Now })
	s.do("POST", "/v1/locks", NewLock{Kind: "user", ID: "alice"}, nil)
	s.do("DELETE", "/v1/locks/user/alice", nil, nil)
	c.move(-time.Hour) // the revocation lies ahead: it waits a second, and no longer
	began := time.Now()
	if _, _, why := s.s.checkPassword(t.Context(), "alice", password, "127.0.0.1:1"); why != reason.OK {
		t.Errorf("with a clock that was set back: %v", why)
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("waited %v", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
	defer cancel()
	if _, _, why := s.s.checkPassword(ctx, "alice", password, "127.0.0.1:1"); why == reason.OK {
		t.Error("signed in for nobody")
	}
}
