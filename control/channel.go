package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// identityLife is how long a T4 opens the other paths of a gateway (M52).
const identityLife = 120 * time.Second

// bodyTimeout bounds the reading of one message and the writing of its answer.
const bodyTimeout = 15 * time.Second

// peer is who stands at the other end of a channel: the party whose
// certificate proved its key in the handshake.
type peer struct {
	*model.Party
	remote          string
	protocol, suite string // of the channel
}

// addressOf returns an address without its port, for counting.
func addressOf(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	return host
}

// peerOf returns the party of a request's channel. The certificate must be the
// very one that the party was given last: a removed or newly enrolled party's
// old certificate opens nothing, whatever its notAfter.
func (s *Server) peerOf(r *http.Request, kind string) (*peer, reason.Reason) {
	ch := channelOf(r.Context())
	leaf := ch.Peer
	if leaf == nil {
		return nil, reason.ClientCertAbsent
	}
	id, err := certid.Of(leaf)
	if err != nil {
		return nil, reason.ClientCertBad
	}
	name := id.Gateway
	if kind == model.Agent {
		name = id.Agent
	}
	if name == "" {
		return nil, reason.ClientCertBad
	}
	p := s.party(name)
	switch {
	case p == nil || p.Kind != kind || string(certificateOf(p, ch.Protocol)) != string(leaf.Raw):
		return nil, reason.ClientCertGone
	case p.DeviceID != id.Device:
		return nil, reason.DeviceMismatch
	}
	return &peer{p, r.RemoteAddr, ch.Protocol, ch.Suite}, reason.OK
}

// certificateOf returns the certificate by which p is known over a protocol.
func certificateOf(p *model.Party, protocol string) []byte {
	if protocol == channel.TLCP {
		return p.TLCP
	}
	return p.TLS
}

// locked returns the lock that shuts p out, nil when there is none.
func (s *Server) locked(p *model.Party) (l *model.Lock) {
	s.view(func(st *model.State) {
		if l = st.Locks[model.LockRef{Kind: "device", ID: p.DeviceID}]; l == nil && p.Kind == model.Agent {
			l = st.Locks[model.LockRef{Kind: "agent", ID: p.ID}]
		}
	})
	return l
}

// identified reports whether a gateway has proved its device by a T4 within
// the last 120 s and may have what follows it (M52).
func (s *Server) identified(p *model.Party) bool {
	var at time.Time
	s.hub.with(p.ID, func(l *link) { at = l.identified })
	age := s.cfg.Now().Sub(at)
	return !at.IsZero() && age < identityLife && age > -identityLife && s.locked(p) == nil
}

// call is one message that a peer sent, opened and checked.
type call struct {
	*peer
	*envelope.Message
}

// answer is what goes back.
type answer struct {
	msgType string // T5, T18 ...
	body    []byte
	reason  reason.Reason
	ext     headerExt
	user    string // subject, for the audit
	class   string // with keep: of the outbox, which names the report file
	// keep, if set, makes the line that must be on disk before the answer goes,
	// with the position in the sender's outbox, if it has one.
	keep   func(*place) []byte
	detail string // for the audit and the log
}

// refuse returns the answer that refuses a message for r: Table 5, or Table 18
// without a token.
func refuse(msgType string, r reason.Reason, detail string) answer {
	result := r.Result()
	if r == reason.FactorRefused { // the particulars are what the peer sent, and what would do
		result += " (" + detail + ")"
	}
	body, err := wire.Encode(&wire.Reply{Code: wire.Failure, Result: result})
	if err != nil {
		panic(err) // the texts are constants
	}
	return answer{msgType: msgType, body: body, reason: r, detail: detail}
}

// accept returns Table 5 with 200.
func accept() answer {
	body, err := wire.Encode(&wire.Reply{Code: wire.Success, Result: reason.OK.Result()})
	if err != nil {
		panic(err)
	}
	return answer{msgType: "T5", body: body}
}

// foreign refuses a message that names another party, or another device, than
// its sender. It returns nil for his own.
func (c *call) foreign(id, deviceID string) *answer {
	why, field := reason.MessageSender, "gatewayId "
	if c.Kind == model.Agent {
		why, field = reason.AgentMismatch, "agentId "
	}
	var no answer
	switch {
	case id != c.ID:
		no = refuse("T5", why, field+id)
	case deviceID != c.DeviceID:
		no = refuse("T5", reason.DeviceMismatch, "deviceId "+deviceID)
	default:
		return nil
	}
	return &no
}

// status returns the HTTP status of an answer refused for r.
func status(r reason.Reason) int {
	switch r {
	case reason.OK:
		return http.StatusOK
	case reason.NotAuthenticated, reason.EnrolCode:
		return http.StatusForbidden
	case reason.ClientCertAbsent, reason.ClientCertBad, reason.ClientCertGone:
		return http.StatusUnauthorized
	case reason.MessageTooLarge:
		return http.StatusRequestEntityTooLarge
	case reason.LoginLimit, reason.TokenGuessLimit:
		return http.StatusTooManyRequests
	case reason.Overload:
		return http.StatusServiceUnavailable
	case reason.InternalError:
		return http.StatusInternalServerError
	}
	return http.StatusBadRequest
}

// message returns the handler of one kind of message on the link of kind. f is
// called once for each message, however often it arrives (§7.1, §9.1).
func (s *Server) message(kind, msgType string, f func(context.Context, *call) answer) http.HandlerFunc {
	replyType := "T5"
	if msgType == "T16" || msgType == wire.TypeReport {
		replyType = "T18"
	}
	in := s.gatewayIn
	if kind == model.Agent {
		in = s.agentIn
	}
	return func(w http.ResponseWriter, r *http.Request) {
		s.stats.messages.Add(1)
		p, why := s.peerOf(r, kind)
		if why != reason.OK {
			s.refuseUnknown(w, r, msgType, why)
			return
		}
		raw, why := readBody(w, r)
		if why != reason.OK {
			s.finish(w, p, nil, msgType, refuse(replyType, why, ""))
			return
		}
		m, err := in.Open(raw, msgType)
		var rejected *envelope.RejectedError
		switch {
		case errors.As(err, &rejected):
			s.finish(w, p, nil, msgType, refuse(replyType, rejected.Reason, causeOf(err)))
			return
		case err != nil:
			s.finish(w, p, nil, msgType, refuse(replyType, reason.MessageMalformed, err.Error()))
			return
		case m.Header.Sender != p.ID:
			s.finish(w, p, m, msgType, refuse(replyType, reason.MessageSender, "signed by "+m.Header.Sender))
			return
		case kind == model.Gateway && msgType != "T4" && !s.identified(p.Party):
			s.finish(w, p, m, msgType, refuse(replyType, reason.NotAuthenticated, ""))
			return
		}
		var a answer
		kept, repeated, err := s.once.Do(p.ID, m.Header.MsgID, m.Digest, func() []byte {
			// The effect and its answer outlive a connection that breaks: the sender
			// will ask again.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), bodyTimeout)
			defer cancel()
			a = s.placed(ctx, &call{p, m}, f)
			return a.pack()
		})
		if err != nil {
			why := reason.MessageConflict
			if errors.As(err, &rejected) {
				why = rejected.Reason
			}
			a = refuse(replyType, why, causeOf(err))
		} else if repeated {
			a = s.repeat(r.Context(), unpack(kept), &call{p, m}, f)
			s.stats.repeats.Add(1)
		}
		s.finish(w, p, m, msgType, a)
	}
}

// repeat returns the answer to a message that had its effect before: the first
// one. To one of an outbox it says how far that outbox is now, not then; and if
// the first try failed here, this one counts.
func (s *Server) repeat(ctx context.Context, a answer, c *call, f func(context.Context, *call) answer) answer {
	a.detail = "repeat"
	_, numbered := c.Header.Ext[wire.ExtOutbox]
	if !numbered || c.Header.MsgType == wire.TypeOutbox && !transient(a.reason) {
		return a
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bodyTimeout)
	defer cancel()
	now := s.placed(ctx, c, f)
	if transient(a.reason) || transient(now.reason) {
		return now
	}
	if a.ext = maps.Clone(a.ext); a.ext == nil {
		a.ext = headerExt{}
	}
	a.ext[wire.ExtOutbox] = now.ext[wire.ExtOutbox]
	return a
}

func causeOf(err error) string {
	if c := errors.Unwrap(err); c != nil {
		return c.Error()
	}
	return err.Error()
}

// refuseUnknown answers a channel that belongs to nobody: there is no receiver
// to whom an envelope could be addressed.
func (s *Server) refuseUnknown(w http.ResponseWriter, r *http.Request, object string, why reason.Reason) {
	s.stats.refused.Add(1)
	s.audit.Write(&audit.Record{Time: s.cfg.Now(), Kind: audit.Interface, Object: object, Remote: r.RemoteAddr,
		Method: r.Method, Path: r.URL.Path, Result: why.String(), Code: why})
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status(why))
	fmt.Fprintf(w, "%s: %s (%s)\n", why.Code(), why.Text(reason.English), why.Advice(reason.English))
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, reason.Reason) {
	if ct, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); !strings.EqualFold(strings.TrimSpace(ct), "application/json") {
		return nil, reason.MessageMalformed
	}
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, wire.MaxMessage))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, reason.MessageTooLarge
	case err != nil:
		return nil, reason.ClientGone
	}
	return raw, reason.OK
}

// finish seals, signs and writes a, and writes the audit record of the
// operation (§6.4).
func (s *Server) finish(w http.ResponseWriter, p *peer, m *envelope.Message, object string, a answer) {
	s.audit.Write(s.record(p, object, a))
	if a.reason != reason.OK {
		s.stats.refused.Add(1)
		s.log.Info("message refused", zap.String("message", object), zap.String("party", p.ID), zap.String("remote_addr", p.remote),
			zap.Stringer("reason", a.reason), zap.String("detail", a.detail))
	}
	env, err := s.seal(p.Party, m, a)
	if err != nil {
		s.log.Error("answer not sealed", zap.String("party", p.ID), zap.Error(err))
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(bodyTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status(a.reason))
	w.Write(env)
}

func (s *Server) record(p *peer, object string, a answer) *audit.Record {
	r := &audit.Record{Time: s.cfg.Now(), Kind: audit.Interface, Object: object, Remote: p.remote, DeviceID: p.DeviceID,
		UserID: a.user, Allowed: a.reason == reason.OK, Result: a.reason.String(), Code: a.reason, Detail: a.detail}
	r.Protocol, r.Suite = p.protocol, p.suite
	switch p.Kind {
	case model.Agent:
		r.AgentID = p.ID
	case model.Gateway:
		r.GatewayID = p.ID
	}
	if object == "T16" {
		r.Kind = audit.Login
	}
	return r
}

// seal returns the envelope of a for p. Everything for an agent is sealed
// (§9.1), and for a gateway what is more than Table 5.
func (s *Server) seal(p *model.Party, m *envelope.Message, a answer) ([]byte, error) {
	h := envelope.Header{MsgType: a.msgType, Receiver: p.ID, Ext: a.ext}
	if m != nil {
		h.Ext = a.ext.with("inReplyTo", m.Header.MsgID)
	}
	var to *smx509.Certificate
	if p.Kind == model.Agent || a.msgType != "T5" {
		var err error
		if to, err = encOf(p); err != nil {
			return nil, err
		}
	}
	return s.sender.Seal(h, a.body, to)
}

// refuseGet answers a GET that is refused.
func (s *Server) refuseGet(w http.ResponseWriter, p *peer, object string, why reason.Reason) {
	s.finish(w, p, nil, object, refuse("T5", why, ""))
}
