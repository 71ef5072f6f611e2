package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/control/passwd"
	"github.com/yumen-zt/yumen/control/store"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// typePassword is the static password of Table 17, the one factor that local
// users have.
const typePassword = 1

// levelPassword is the sign-in level of a password alone.
const levelPassword = 1

// authenticate is T16 → T18 (§9.3.1). With factors it signs a user in; with an
// empty list it is the identity report of an agent whose user is signed in
// (§9.2, Q25), and gives a new token when less than half of the old one's life
// is left.
func (s *Server) authenticate(ctx context.Context, c *call) answer {
	m, err := wire.Decode[wire.Authentication](c.Body, s.profile)
	if err != nil {
		return refuse("T18", reason.MessageInvalid, err.Error())
	}
	who := s.whoIs(m)
	refuse := func(r reason.Reason, detail string) answer {
		a := refuse("T18", r, detail)
		a.user = who
		return a
	}
	// 1 Who asks is who holds the channel.
	switch {
	case m.AgentID != c.ID:
		return refuse(reason.AgentMismatch, "agentId "+m.AgentID)
	case m.DeviceID != c.DeviceID:
		return refuse(reason.DeviceMismatch, "deviceId "+m.DeviceID)
	case c.UserID != "" && c.UserID != who:
		return refuse(reason.UserMismatch, "the device belongs to another user")
	}
	if l := s.locked(c.Party); l != nil {
		a := refuse(reason.Locked, l.Kind)
		a.ext = a.ext.with(wire.ExtMessage, l.Message)
		return a
	}
	pair := model.Pair{User: who, Device: m.DeviceID}
	now := s.cfg.Now()
	next := &model.Session{UserID: who, DeviceID: m.DeviceID, AgentID: m.AgentID}
	var epoch uint64
	// 2 The proof: a live authentication, or factors.
	if len(m.UserAuthenticationList) == 0 {
		var old *model.Session
		old, epoch = s.session(pair)
		if old == nil || old.AgentID != c.ID || !now.Before(old.Expires) || !now.Before(old.Ends) {
			return refuse(reason.NotAuthenticated, "no user is signed in on this device")
		}
		if old.Expires.Sub(now) > s.cfg.TokenLife/2 || old.Ends.Sub(now) <= s.cfg.TokenLife/2 {
			return s.tokenAnswer(old, "report")
		}
		next.AuthTime, next.Ends, next.Level, next.Factors = old.AuthTime, old.Ends, old.Level, old.Factors
	} else {
		if detail := unsupported(m); detail != "" {
			return refuse(reason.FactorRefused, detail)
		}
		u, at, why := s.checkPassword(ctx, m.UserID, m.UserAuthenticationList[0].AuthenticationContent, c.remote)
		if why != reason.OK {
			a := refuse(why, "")
			if why == reason.Locked {
				a.ext = a.ext.with(wire.ExtMessage, s.lockMessage(u.ID))
			}
			return a
		}
		if u.ID != who { // the name went to another account between the two looks
			return refuse(reason.LoginFailed, "the name is another user's by now")
		}
		now, epoch = s.cfg.Now(), at // it may have waited
		next.AuthTime, next.Ends, next.Level, next.Factors = now, now.Add(s.cfg.SessionLife), levelPassword, []int{typePassword}
	}
	next.Issued, next.Expires = now, now.Add(s.cfg.TokenLife).Truncate(time.Second)
	if next.Ends.Before(next.Expires) {
		next.Expires = next.Ends.Truncate(time.Second)
	}
	// 3 The token, durable before anybody hears of it.
	if next.Token, err = wire.NewToken(s.cfg.Rand); err != nil {
		return refuse(reason.InternalError, err.Error())
	}
	rev, err := s.putSession(pair, next, epoch)
	switch {
	case errors.Is(err, errLocked):
		return refuse(reason.Locked, "")
	case errors.Is(err, errRevoked):
		return refuse(reason.SessionRevoked, "")
	case err != nil:
		s.log.Error("authentication not stored", zap.Error(err))
		return refuse(reason.InternalError, err.Error())
	}
	// 4 The gateways know the token when the agent does.
	wait, cancel := context.WithTimeout(ctx, s.cfg.AckWait)
	defer cancel()
	s.hub.waitAcks(wait, rev, now)
	return s.tokenAnswer(next, "token")
}

// whoIs returns the userId of whom m is about. Who signs in may give the name
// instead, as far as Table 16 has room for it; a report is of a userId. What
// nobody has stays as it came.
func (s *Server) whoIs(m *wire.Authentication) string {
	id := m.UserID
	if len(m.UserAuthenticationList) > 0 {
		s.view(func(st *model.State) {
			if u := st.UserByName(id); u != nil {
				id = u.ID
			}
		})
	}
	return id
}

// unsupported says which proof of m local users do not have, "" when there is
// none: theirs is one static password.
func unsupported(m *wire.Authentication) string {
	if m.UserAuthenticationMethod != wire.MethodLocal {
		return fmt.Sprintf("method %d; method %d is needed", m.UserAuthenticationMethod, wire.MethodLocal)
	}
	for _, f := range m.UserAuthenticationList {
		if f.AuthenticationType != typePassword {
			return fmt.Sprintf("factor of type %d; a static password, type %d, is all that is taken", f.AuthenticationType, typePassword)
		}
	}
	if n := len(m.UserAuthenticationList); n != 1 {
		return fmt.Sprintf("%d passwords; one is needed", n)
	}
	return ""
}

// session returns who is authenticated as pair, and the epoch of its user:
// every revocation begins a new one.
func (s *Server) session(pair model.Pair) (v *model.Session, epoch uint64) {
	s.view(func(st *model.State) { v, epoch = st.Sessions[pair], st.Modified[model.KeyRevocation+pair.User] })
	return v, epoch
}

// What came between a proof and its token.
var (
	errLocked  = errors.New("a lock is in force")
	errRevoked = errors.New("the user's sign-ins were revoked meanwhile")
)

// putSession writes v unless the user or device has been locked or removed
// since, or the epoch is over in which the proof was made: what that
// transaction saw as absent must stay absent.
func (s *Server) putSession(pair model.Pair, v *model.Session, epoch uint64) (uint64, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return 0, err
	}
	return s.change(func(st *model.State) ([]store.Compare, []store.Op, error) {
		revocation := model.KeyRevocation + pair.User
		if st.Modified[revocation] != epoch {
			return nil, nil, errRevoked
		}
		compares := []store.Compare{{Key: revocation, Modified: epoch}}
		for _, ref := range []model.LockRef{{Kind: "user", ID: pair.User}, {Kind: "device", ID: pair.Device}, {Kind: "agent", ID: v.AgentID}} {
			if st.Locks[ref] != nil {
				return nil, nil, errLocked
			}
			compares = append(compares, store.Compare{Key: model.LockKey(ref)})
		}
		for _, key := range []string{model.KeyUser + pair.User, model.KeyParty + v.AgentID} {
			if st.Modified[key] == 0 {
				return nil, nil, errors.New("the user or the agent was removed")
			}
			compares = append(compares, store.Compare{Key: key, Modified: st.Modified[key]})
		}
		ops := []store.Op{store.Put(model.SessionKey(pair), raw)}
		for _, other := range st.SessionsOn(pair.Device) {
			if other != pair { // one user at a time: whoever was signed in here is not any more
				ops = append(ops, store.Delete(model.SessionKey(other)))
			}
		}
		return compares, ops, nil
	})
}

func (s *Server) tokenAnswer(v *model.Session, detail string) answer {
	body, err := wire.Encode(&wire.AuthenticationReply{Code: wire.Success, Result: reason.OK.Result(),
		AuthToken: v.Token, ExpirationDate: wire.FormatTime(v.Expires)})
	if err != nil {
		return refuse("T18", reason.InternalError, err.Error())
	}
	return answer{msgType: "T18", body: body, user: v.UserID, detail: detail, ext: headerExt{}.with(wire.ExtUserID, v.UserID)}
}

// checkPassword checks the password of the user who signs in as name (a userId
// or a name) from remote, and returns the user's epoch, see [Server.session].
// Only who knows the password learns of a lock. Guessing is bounded by user and
// by address (M168), and a wrong name takes as long as a wrong password.
//
// A revocation ends what began before the next whole second. A sign-in of that
// same second waits for the end of it, and is younger by every clock that shows
// whole seconds (authTime, auth_time).
func (s *Server) checkPassword(ctx context.Context, name, password, remote string) (*model.User, uint64, reason.Reason) {
	var u *model.User
	var epoch uint64
	s.view(func(st *model.State) {
		if u = st.UserByName(name); u != nil {
			epoch = st.Modified[model.KeyRevocation+u.ID]
		}
	})
	account, hash := "?"+name, ""
	if u != nil {
		account, hash = u.ID, u.Password
	}
	source := addressOf(remote)
	if !s.sources.Begin(source) {
		return nil, 0, reason.LoginLimit
	}
	if !s.users.Begin(account) {
		return nil, 0, reason.LoginLimit
	}
	err := s.hasher.Check(ctx, hash, password)
	switch {
	case errors.Is(err, passwd.ErrWrong):
		if _, now := s.users.Locked(account); now {
			s.cfg.Alerts.Raise(alert.Alert{Code: alert.LoginAttack, Time: s.cfg.Now(), Reason: reason.LoginLimit, UserID: account, Remote: source})
		}
		return nil, 0, reason.LoginFailed
	case err != nil:
		s.log.Error("password not checked", zap.String("user_id", account), zap.Error(err))
		return nil, 0, reason.Overload
	}
	s.users.Forget(account)
	s.sources.Succeed(source)
	var locked, revoked bool
	var from time.Time // when a sign-in is younger than the last revocation
	s.view(func(st *model.State) {
		locked = st.Locks[model.LockRef{Kind: "user", ID: u.ID}] != nil
		revoked = st.Modified[model.KeyRevocation+u.ID] != epoch
		if r := st.Revocations[u.ID]; r != nil {
			from = r.IssuedBefore
		}
	})
	switch {
	case locked:
		return u, epoch, reason.Locked
	case revoked: // while the password was checked; it may be another one by now
		return u, epoch, reason.SessionRevoked
	}
	if wait := from.Sub(s.cfg.Now()); wait > 0 {
		t := time.NewTimer(min(wait, time.Second)) // longer only when the clock was set back
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, 0, reason.ClientGone
		}
	}
	return u, epoch, reason.OK
}

// lockMessage returns what the operator says to a locked user.
func (s *Server) lockMessage(userID string) (text string) {
	s.view(func(st *model.State) {
		if l := st.Locks[model.LockRef{Kind: "user", ID: userID}]; l != nil {
			text = l.Message
		}
	})
	return text
}

// resources is T19 (§9.3.2): what the agent's user may reach, and through which
// gateways. The agent may have it while its user is authenticated.
func (s *Server) resources(w http.ResponseWriter, r *http.Request) {
	p, why := s.peerOf(r, model.Agent)
	if why != reason.OK {
		s.refuseUnknown(w, r, "T19", why)
		return
	}
	if l := s.locked(p.Party); l != nil {
		a := refuse("T5", reason.Locked, l.Kind)
		a.ext = a.ext.with(wire.ExtMessage, l.Message)
		s.finish(w, p, nil, "T19", a)
		return
	}
	l, err := s.resourcesOf(p, r.URL.Query().Get("userId"))
	if err == nil && l == nil {
		s.refuseGet(w, p, "T19", reason.NotAuthenticated)
		return
	}
	var body []byte
	if err == nil {
		body, err = wire.Encode(&l.list)
	}
	if err != nil {
		s.log.Error("resources not made", zap.Error(err))
		s.refuseGet(w, p, "T19", reason.InternalError)
		return
	}
	ext := headerExt{}.with(wire.ExtGateways, l.gateways).with(wire.ExtResources, l.facts)
	s.finish(w, p, nil, "T19", answer{msgType: "T19", body: body, ext: ext, user: l.list.UserID})
}

// agentStatus is T21 (§9.3.3).
func (s *Server) agentStatus(_ context.Context, c *call) answer {
	m, err := wire.Decode[wire.AgentStatus](c.Body, s.profile)
	if err != nil {
		return refuse("T5", reason.MessageInvalid, err.Error())
	}
	if no := c.foreign(m.AgentID, m.DeviceID); no != nil {
		return *no
	}
	now := s.cfg.Now()
	s.hub.with(c.ID, func(l *link) {
		l.status, l.remote = now, c.remote
		l.versions(c.Header.Ext)
	})
	a := accept()
	a.user = m.UserID
	return a
}

// agentAlert is T22 (§9.3.4). It is on disk before it is acknowledged; its
// userId may be of somebody who has signed out since (Q30).
func (s *Server) agentAlert(_ context.Context, c *call) answer {
	m, err := wire.Decode[wire.AgentAlert](c.Body, s.profile)
	if err != nil {
		return refuse("T5", reason.MessageInvalid, err.Error())
	}
	if no := c.foreign(m.AgentID, m.DeviceID); no != nil {
		return *no
	}
	now := s.cfg.Now()
	s.hub.with(c.ID, func(l *link) { l.alert = now })
	a := accept()
	a.user, a.class = m.UserID, "alert"
	a.keep = func(p *place) []byte {
		return appendLine(nil, alertLine{Received: now, Table: 22, Sender: c.ID, MsgID: c.Header.MsgID, DeviceID: m.DeviceID,
			UserID: m.UserID, Time: m.Timestamp, Type: m.ExceptionAlertType, Level: m.ExceptionAlertLevel, Content: m.ExceptionAlertContent, Outbox: p})
	}
	return a
}
