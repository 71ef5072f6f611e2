package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/control/store"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// identity is T4 → T5 (§7.3.1): a gateway proves its device, and is known for
// 120 s. It is the identity report of §7.2, too (Q25).
func (s *Server) identity(_ context.Context, c *call) answer {
	m, err := wire.Decode[wire.DeviceIdentity](c.Body, s.profile)
	if err != nil {
		return refuse("T5", reason.MessageInvalid, err.Error())
	}
	if no := c.foreign(m.GatewayID, m.DeviceID); no != nil {
		return *no
	}
	if s.locked(c.Party) != nil {
		return refuse("T5", reason.Locked, "")
	}
	now := s.cfg.Now()
	s.hub.with(c.ID, func(l *link) {
		l.identified, l.remote, l.protocol, l.suite = now, c.remote, c.protocol, c.suite
		l.versions(c.Header.Ext)
		if k := permitKeys(c.Header.Ext); k != nil {
			l.permits = k
		}
	})
	return s.newest(c, s.agreed(c, m.Timestamp))
}

// newest answers a T4's nonce with the newest versions, so that the gateway
// knows that this is now, and what is too old.
func (s *Server) newest(c *call, a answer) answer {
	nonce := extText(c.Header.Ext, wire.ExtNonce)
	if nonce == "" {
		return a
	}
	s.view(func(st *model.State) {
		a.ext = a.ext.with(wire.ExtNonce, nonce).with(wire.ExtListVersion, strconv.FormatUint(st.GrantsVersion, 10)).
			with(wire.ExtPolicyVersion, strconv.FormatUint(st.PoliciesVersion, 10))
	})
	return a
}

// agreed accepts a report, and names the lists that its sender should fetch
// whole.
func (s *Server) agreed(c *call, reported string) answer {
	a := accept()
	if differ := s.compare(c, reported); len(differ) > 0 {
		a.ext = a.ext.with(wire.ExtDiffers, differ)
	}
	return a
}

// versions keeps what a report's extension fields say.
func (l *link) versions(ext map[string]jsontext.Value) {
	if v := extText(ext, wire.ExtListVersion); v != "" {
		l.listVersion = v
	}
	if v := extText(ext, wire.ExtPolicyVersion); v != "" {
		l.policyVer = v
	}
	if v, ok := ext[wire.ExtPending]; ok && len(v) < 256 {
		l.outbox = string(v)
	}
	if v := extText(ext, wire.ExtState); v != "" {
		l.state = v
	}
	if v, ok := ext[wire.ExtFreshness]; ok {
		var f wire.Freshness
		if json.Unmarshal(v, &f) == nil && len(f.State) < 64 {
			l.freshness = f.State
		}
	}
}

// gatewayStatus is T10 (§7.3.4).
func (s *Server) gatewayStatus(_ context.Context, c *call) answer {
	m, err := wire.Decode[wire.GatewayStatus](c.Body, s.profile)
	if err != nil {
		return refuse("T5", reason.MessageInvalid, err.Error())
	}
	if no := c.foreign(m.GatewayID, m.DeviceID); no != nil {
		return *no
	}
	now := s.cfg.Now()
	s.hub.with(c.ID, func(l *link) {
		l.status = now
		l.versions(c.Header.Ext)
	})
	return s.agreed(c, m.Timestamp)
}

// gatewayAlert is T11 (§7.3.5). It is on disk before it is acknowledged.
func (s *Server) gatewayAlert(_ context.Context, c *call) answer {
	m, err := wire.Decode[wire.GatewayAlert](c.Body, s.profile)
	if err != nil {
		return refuse("T5", reason.MessageInvalid, err.Error())
	}
	if no := c.foreign(m.GatewayID, m.DeviceID); no != nil {
		return *no
	}
	now := s.cfg.Now()
	s.hub.with(c.ID, func(l *link) { l.alert = now })
	a := accept()
	a.class = "alert"
	a.keep = func(p *place) []byte {
		return appendLine(nil, alertLine{Received: now, Table: 11, Sender: c.ID, MsgID: c.Header.MsgID, DeviceID: m.DeviceID,
			Time: m.Timestamp, Type: m.ExceptionAlertType, Level: m.ExceptionAlertLevel, Content: m.ExceptionAlertContent, Outbox: p})
	}
	return a
}

// ack is X.ack: how the gateway took a version of a list.
func (s *Server) ack(_ context.Context, c *call) answer {
	m, err := wire.DecodeExtension[wire.Ack](c.Body)
	if err != nil || m.List != wire.GrantsList && m.List != wire.PoliciesList || len(m.Result) > 200 {
		return refuse("T5", reason.MessageInvalid, "acknowledgement")
	}
	var newest uint64
	s.view(func(st *model.State) { newest = st.Rev })
	if m.Version > newest {
		return refuse("T5", reason.MessageInvalid, "acknowledgement of a version that was never given")
	}
	if m.List == wire.GrantsList && m.Applied {
		s.delivered(c.ID, m.Version)
	}
	s.hub.ack(c.ID, *m)
	return accept()
}

// maxLogoutLife is the longest that a log-out is remembered: no cookie lives
// longer.
const maxLogoutLife = 720 * time.Hour

// logout is X.logout: a person signed out at one gateway. It is committed
// before it is acknowledged, and pushed to every gateway as a revocation.
func (s *Server) logout(_ context.Context, c *call) answer {
	m, err := wire.DecodeExtension[wire.Logout](c.Body)
	if err != nil {
		return refuse("T5", reason.MessageInvalid, err.Error())
	}
	now := s.cfg.Now()
	until, _ := wire.ParseTime(m.Until) // checked
	if until.After(now.Add(maxLogoutLife)) {
		until = now.Add(maxLogoutLife)
	}
	if !until.After(now) {
		return accept() // it came late: the cookie is over
	}
	raw, err := json.Marshal(&model.Revocation{SessionID: m.SessionID, Until: until})
	if err == nil {
		_, err = s.commit(nil, store.Put(model.RevokedSessionKey(m.SessionID), raw))
	}
	if err != nil {
		return refuse("T5", reason.InternalError, err.Error())
	}
	return accept()
}

// subject is X.subject: who is this account of an identity provider (Q26)? Of
// the embedded provider the subject is the userId itself.
func (s *Server) subject(_ context.Context, c *call) answer {
	m, err := wire.DecodeExtension[wire.SubjectQuery](c.Body)
	if err != nil || m.Issuer == "" || m.Subject == "" || len(m.Issuer) > 500 || len(m.Subject) > 500 {
		return refuse("T5", reason.MessageInvalid, "subject")
	}
	user := ""
	s.view(func(st *model.State) {
		if s.cfg.IDP != nil && m.Issuer == s.cfg.IDP.Issuer {
			user = m.Subject
		} else if v := st.Subjects[subjectKey(m.Issuer, m.Subject)]; v != nil {
			user = v.UserID
		}
		if st.Users[user] == nil || st.Locks[model.LockRef{Kind: "user", ID: user}] != nil {
			user = ""
		}
	})
	if user == "" {
		return refuse("T5", reason.SubjectUnmapped, m.Issuer+" "+m.Subject)
	}
	body, err := wire.EncodeExtension(&wire.SubjectReply{UserID: user})
	if err != nil {
		return refuse("T5", reason.InternalError, err.Error())
	}
	return answer{msgType: wire.TypeSubject, body: body, user: user}
}

// subjectKey returns the store's key of a mapped account.
func subjectKey(issuer, subject string) string {
	sum := sha256.Sum256([]byte(issuer + "\x00" + subject))
	return model.KeySubject + hex.EncodeToString(sum[:])
}
