package control

import (
	"context"
	"encoding/hex"
	"net"
	"strconv"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// report is X.report: Table 16 without factors, Table 21 and the state of the
// device in one message; Table 18, and Table 19 when the agent has another one,
// in its answer. Each table is an operation of its own to the audit.
func (s *Server) report(ctx context.Context, c *call) answer {
	m, err := wire.DecodeExtension[wire.AgentReport](c.Body)
	if err != nil {
		return refuse("T18", reason.MessageInvalid, err.Error())
	}
	part := func(table string, body []byte) *call {
		h := c.Header
		h.MsgType = table
		return &call{c.peer, &envelope.Message{Header: h, Body: body, Signer: c.Signer}}
	}
	// 1 Who reports. Proofs are for Table 16 alone: it is audited as a sign-in.
	who, err := wire.Decode[wire.Authentication](m.Authentication, s.profile)
	switch {
	case err != nil:
		return refuse("T18", reason.MessageInvalid, err.Error())
	case len(who.UserAuthenticationList) > 0:
		return refuse("T18", reason.MessageInvalid, "a report with proofs")
	}
	a := s.authenticate(ctx, part("T16", m.Authentication))
	if a.reason != reason.OK {
		return a
	}
	s.audit.Write(s.record(c.peer, "T16", a))
	out := wire.AgentReportReply{Authentication: a.body}
	// 2 How the device is.
	if len(m.Status) > 0 {
		b := s.agentStatus(ctx, part("T21", m.Status))
		s.audit.Write(s.record(c.peer, "T21", b))
		if b.reason != reason.OK {
			out.Status = b.reason.Result()
			s.log.Warn("status refused", zap.String("agent_id", c.ID), zap.Stringer("reason", b.reason), zap.String("detail", b.detail))
		}
	}
	if m.Posture != nil {
		if err := s.takePosture(c.Party, m.Posture); err != nil {
			s.log.Error("posture not stored", zap.String("agent_id", c.ID), zap.Error(err))
		}
	}
	// 3 What its user may reach.
	r, err := s.resourcesOf(c.peer, a.user)
	if err != nil {
		return refuse("T18", reason.InternalError, err.Error())
	}
	if r != nil {
		tag, err := r.tag()
		if err != nil {
			return refuse("T18", reason.InternalError, err.Error())
		}
		if tag != m.Resources {
			raw, err := wire.Encode(&r.list)
			if err != nil {
				return refuse("T18", reason.InternalError, err.Error())
			}
			s.audit.Write(s.record(c.peer, "T19", answer{user: r.list.UserID}))
			out.Resources = &wire.TaggedResources{Tag: tag, List: raw, Facts: r.facts, Gateways: r.gateways}
		}
	}
	body, err := wire.EncodeExtension(&out)
	if err != nil {
		return refuse("T18", reason.InternalError, err.Error())
	}
	return answer{msgType: wire.TypeReport, body: body, user: a.user, detail: a.detail, ext: a.ext}
}

// resources is Table 19 with its extensions.
type resources struct {
	list     wire.ResourceList
	facts    []wire.ResourceFacts
	gateways []wire.GatewayRef
}

// resourcesOf makes Table 19 of userID at p, of the only user who is signed in
// there when userID is empty; nil when nobody is.
func (s *Server) resourcesOf(p *peer, userID string) (*resources, error) {
	now := s.cfg.Now()
	r := &resources{
		list:     wire.ResourceList{AgentID: p.ID, DeviceID: p.DeviceID, KeyType: keyType, Timestamp: wire.FormatTime(now)},
		gateways: []wire.GatewayRef{},
	}
	s.view(func(st *model.State) {
		pair := model.Pair{Device: p.DeviceID, User: userID}
		if on := st.SessionsOn(p.DeviceID); pair.User == "" && len(on) == 1 {
			pair = on[0]
		}
		if v := st.Sessions[pair]; v == nil || v.AgentID != p.ID || !now.Before(v.Expires) || st.Rows[pair] == nil {
			return
		}
		r.list.UserID = pair.User
		for _, a := range st.GrantedApps(pair) {
			for _, address := range a.Addresses {
				host, port, err := net.SplitHostPort(address)
				n, err2 := strconv.Atoi(port)
				if err != nil || err2 != nil {
					continue // refused when it was set
				}
				r.facts = append(r.facts, wire.ResourceFacts{I: len(r.list.ResourceList), Hosts: a.Hosts, Protocol: a.Protocol})
				r.list.ResourceList = append(r.list.ResourceList, wire.Resource{AppID: a.ID, AppName: a.Name, IP: host, Port: n})
			}
		}
		r.gateways = gatewaysOf(st)
	})
	if r.list.UserID == "" {
		return nil, nil
	}
	s.permit(r.gateways, p.DeviceID)
	return r, nil
}

// tag says which list r is, whenever it is made.
func (r *resources) tag() (string, error) {
	said := r.list
	said.Timestamp = ""
	raw, err := wire.EncodeExtension(struct {
		List     wire.ResourceList
		Facts    []wire.ResourceFacts
		Gateways []wire.GatewayRef
	}{said, r.facts, r.gateways})
	sum := sm3.Sum(raw)
	return hex.EncodeToString(sum[:16]), err
}

// postureRest is how long a device's new state is left alone, when it is not
// worse: each change is a change of the lists.
const postureRest = time.Second

// takePosture keeps the state of p's device and its score, when they have
// changed: the row of Table 7 follows, and flows that it no longer allows end.
func (s *Server) takePosture(p *model.Party, now *wire.Posture) error {
	score := s.cfg.Posture.score(now)
	if p.Device != nil && *p.Device == *now && p.Seen != nil && *p.Seen == score {
		return nil
	}
	soon, at := false, s.cfg.Now()
	s.hub.with(p.ID, func(l *link) {
		if soon = at.Sub(l.posture).Abs() < postureRest; !soon {
			l.posture = at
		}
	})
	if worse := p.Seen != nil && score < *p.Seen; soon && !worse { // what takes a right away never waits
		return nil // the next report has it
	}
	_, err := s.editParty(p.ID, func(p *model.Party) error {
		p.Device, p.Seen = now, &score
		return nil
	})
	return err
}
