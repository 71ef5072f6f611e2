package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// session is who is signed in. The zero value is nobody. The token is kept in
// memory only.
type session struct {
	userID, token string
	expires       time.Time
}

func (s session) in() bool { return s.token != "" }

const loginTimeout = 20 * time.Second

// Login signs name in with the given proofs (Tables 16 to 18) and fetches the
// resource list. name is a userId, or a sign-in name that Table 16 has room for;
// the control center says whose it is. The proofs are sent once and kept nowhere. A refusal names its
// reason in both languages by [ExplainError].
func (a *Agent) Login(ctx context.Context, name string, factors []wire.Factor) error {
	if !fitsTable16(name) {
		return &nameError{printable(name)}
	}
	if len(factors) == 0 {
		return errors.New("sign in: no password or other proof")
	}
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	a.loginMu.Lock()
	defer a.loginMu.Unlock()
	tok, err := a.link.Login(ctx, name, wire.MethodLocal, factors)
	if err != nil {
		if !a.signedIn() { // else it may be about another one than who is
			a.noteRefusal(err)
		}
		return fmt.Errorf("sign in %s: %w", name, err)
	}
	a.noLock()
	if err := a.takeToken(tok); err != nil {
		a.signOut(reason.LoginFailed)
		return fmt.Errorf("sign in %s: %w", name, err)
	}
	a.log.Info("signed in", zap.String("user_id", tok.UserID), zap.Time("expires", tok.Expires))
	if err := a.state.setUser(tok.UserID); err != nil {
		a.log.Warn("state not written", zap.Error(err))
	}
	rs, err := a.link.FetchResources(ctx)
	if err != nil {
		return fmt.Errorf("signed in, but fetch resource list: %w", err)
	}
	a.setResources(rs)
	return nil
}

// fitsTable16 reports whether userId of Table 16 can carry name: 1 to 11
// letters, digits and symbols, no spaces.
func fitsTable16(name string) bool {
	return name != "" && len(name) <= wire.IDLength && !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// nameError says that Table 16 has no room for a name.
type nameError struct{ name string }

func (e *nameError) Error() string { return "sign in: " + e.words().EN }

func (e *nameError) words() Words {
	return Words{
		EN: fmt.Sprintf("the name %q is not 1 to %d letters, digits and symbols; sign in with the userId instead, for example USR00000001 (your administrator finds it by yumen control user list)", e.name, wire.IDLength),
		ZH: fmt.Sprintf("用户名 %q 不是 1 至 %d 个字母、数字或符号，请改用 userId 登录，例如 USR00000001（管理员可用 yumen control user list 查询）", e.name, wire.IDLength),
	}
}

// errNoToken is a Table 18 that says 200 and gives no usable token: a failure
// (M96).
var errNoToken = errors.New("the control center answered with success but without a valid token (Table 18 needs authToken and expirationDate)")

// takeToken makes tok the session's. A token for another user than the one who
// is signed in begins a new session.
func (a *Agent) takeToken(tok ctlclient.Token) error {
	if tok.UserID == "" || tok.AuthToken == "" || tok.Expires.IsZero() || !a.cfg.Now().Before(tok.Expires) {
		return errNoToken
	}
	a.mu.Lock()
	old := a.session
	a.session, a.lastNo = session{userID: tok.UserID, token: tok.AuthToken, expires: tok.Expires}, nil
	if old.in() && old.userID != tok.UserID {
		a.routes, a.gateways = nil, nil
	}
	a.broadcast()
	a.mu.Unlock()
	if old.in() && old.userID != tok.UserID {
		a.cutFlows(reason.LoggedOut, func(*flow) bool { return true })
	}
	return nil
}

// onToken takes a token that an identity report brought (Q25). It never begins
// a session: a report that is answered after the sign-out changes nothing.
func (a *Agent) onToken(tok ctlclient.Token) {
	a.mu.Lock()
	mine := a.session.in() && a.session.userID == tok.UserID
	a.mu.Unlock()
	if !mine {
		return
	}
	if err := a.takeToken(tok); err != nil {
		a.log.Warn("token not taken", zap.Error(err))
	}
}

// Logout ends the session, the tunnel and every flow.
func (a *Agent) Logout() {
	a.noLock()
	a.signOut(reason.LoggedOut)
}

func (a *Agent) signOut(r reason.Reason) {
	a.link.Logout()
	a.mu.Lock()
	was := a.session
	a.session, a.routes, a.gateways = session{}, nil, nil
	a.broadcast()
	a.mu.Unlock()
	a.cutFlows(r, func(*flow) bool { return true })
	if was.in() {
		a.log.Info("signed out", zap.String("user_id", was.userID), zap.Stringer("reason", r))
		a.notices.add(Notice{Time: a.cfg.Now(), Kind: "agent", Level: 1, Reason: r.Code(), Words: sentence(r, "")})
	}
}

// onSignedOut is the control center's word that the sign-in has ended.
func (a *Agent) onSignedOut(err error) {
	r := reason.SessionRevoked
	var no *ctlclient.RefusedError
	if errors.As(err, &no) && no.Reason != reason.OK {
		r = no.Reason
	}
	a.noteRefusal(err)
	a.signOut(r)
}

// setResources takes a new Table 19: routes that it does not have any more are
// gone, and flows on them end with the reason.
func (a *Agent) setResources(rs *ctlclient.Resources) { a.takeResources(rs) }

// takeResources is setResources, and reports whether the ways have changed.
func (a *Agent) takeResources(rs *ctlclient.Resources) bool {
	if rs.List.AgentID != a.id.AgentID || rs.List.DeviceID != a.id.DeviceID {
		a.log.Warn("resource list refused", zap.String("agent_id", printable(rs.List.AgentID)), zap.Stringer("reason", reason.MessageReceiver))
		return false
	}
	t, err := newRoutes(rs)
	if err != nil {
		a.log.Warn("resource list has bad rows", zap.Error(err))
	}
	a.mu.Lock()
	if !a.session.in() || a.session.userID != rs.List.UserID {
		a.mu.Unlock()
		a.log.Warn("resource list refused", zap.Stringer("reason", reason.UserMismatch))
		return false
	}
	changed := !a.routes.equal(t)
	a.routes, a.gateways, a.fetched = t, rs.Gateways, a.cfg.Now()
	a.broadcast()
	a.mu.Unlock()
	a.cutFlows(reason.GrantRevoked, func(f *flow) bool { return !t.has(f.res) })
	if a.permits != nil {
		if err := a.permits.learn(rs.Gateways); err != nil {
			a.log.Warn("long-lived permits not kept", zap.Error(err))
		}
	}
	return changed
}

func (a *Agent) currentRoutes() *routes {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.routes
}

func (a *Agent) signedIn() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.session.in()
}

// broadcast wakes everybody who waits for a change. a.mu must be held.
func (a *Agent) broadcast() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// keepSession ends a session whose token has expired, and fetches the resource
// list anew when something hints that it has changed.
func (a *Agent) keepSession(ctx context.Context) error {
	// The link passes a list on when it differs from the last that it passed on.
	// A list that we fetched ourselves is not among those: were it taken back
	// before the link's next look, the link would see no change. So we look again.
	again := time.Duration(math.MaxInt64)
	for {
		a.mu.Lock()
		s, changed := a.session, a.changed
		a.mu.Unlock()
		wait := 30 * time.Second // a wall clock that was set is noticed then
		if s.in() {
			left := s.expires.Sub(a.cfg.Now())
			if left <= 0 {
				a.signOut(reason.TokenExpired)
				continue
			}
			wait = min(wait, left, again-a.cfg.Elapsed())
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
		case <-timer.C:
			if s.in() && a.cfg.Elapsed() >= again {
				again = math.MaxInt64
				if a.fetchAgain(ctx) {
					again = a.cfg.Elapsed() + time.Minute
				}
			}
		case <-a.refetch:
			if s.in() && a.fetchAgain(ctx) {
				again = a.cfg.Elapsed() + time.Minute
			}
		}
		timer.Stop()
	}
}

// fetchAgain reports whether another look is due: the ways have changed, or
// could not be fetched.
func (a *Agent) fetchAgain(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	rs, err := a.link.FetchResources(ctx)
	if err != nil {
		a.noteRefusal(err)
		a.log.Warn("resource list not fetched", zap.Error(err))
		return true
	}
	return a.takeResources(rs)
}

// hint asks for a fresh resource list, unless one was asked for within gap: a
// program that retries a refused destination must not become a load on the
// control center.
func (a *Agent) hint(gap time.Duration) {
	now := a.cfg.Elapsed()
	a.mu.Lock()
	soon := a.hinted != 0 && now-a.hinted < gap
	if !soon {
		a.hinted = now
	}
	a.mu.Unlock()
	if soon {
		return
	}
	select {
	case a.refetch <- struct{}{}:
	default:
	}
}
