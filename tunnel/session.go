package tunnel

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

// rotation is how long a token counts in Table 12 after a newer one took its
// place: requests may be under way.
const rotation = 60 * time.Second

// tunnel is one connection of an agent's tunnel: the only one, but for agents
// that want several. What belongs to the tunnel as a whole stands in shared.
type tunnel struct {
	*shared // one's own until the hello asks to join; changed under srv.mu, before ready

	conn  Conn
	mux   *mux.Session
	flows sync.WaitGroup

	// Set by the hello, on the reader's goroutine, before the mux lets flows in.
	seal *carrier.Sealer

	ready atomic.Bool // the hello was accepted: seal and session are set

	at   netip.Addr         // of review alone: where the agent was seen last, once it has moved
	away bool               // of review alone: it has moved
	live map[*flow]struct{} // guarded by mu; on a carrier that may move
}

// shared is an agent's tunnel: who it is of, its session and its renewals.
type shared struct {
	srv   *Server
	key   string // the session's id
	id    certid.Identity
	since time.Time

	name   string    // which its other connections say; "" for a tunnel of one; guarded by srv.mu
	links  []*tunnel // guarded by srv.mu; whose hello was accepted, the oldest first
	userID string    // guarded by srv.mu until the hello is accepted, then read only

	session *access.Session // set by the first hello, before ready

	leaving atomic.Bool  // the agent was told that the tunnel ends
	renewed atomic.Int64 // UnixNano of the hello or the last accepted Table 14
	open    atomic.Int64 // flows
	in, out atomic.Int64 // bytes of ended flows

	mu       sync.Mutex
	newest   time.Time // guarded by mu; updateTime of the last accepted Table 14
	previous string    // guarded by mu; the token before the present one
	until    time.Time // guarded by mu; it counts so long
	notices  float64   // guarded by mu; how many more may go now
	noticeAt time.Time // guarded by mu
}

// ServeConn serves one connection of a tunnel until it ends or ctx does, and
// closes c. It returns why, a [*mux.ClosedError], after every goroutine of the
// connection.
func (s *Server) ServeConn(ctx context.Context, c Conn) error {
	// What is here stays on the stack of an idle tunnel's one goroutine: little.
	t := s.begin(c)
	defer s.leave(t)
	err := t.mux.Run(ctx)
	s.finish(t, err)
	return err
}

// begin makes the tunnel of a connection, and registers it if there is room.
func (s *Server) begin(c Conn) *tunnel {
	t := &tunnel{conn: c, shared: &shared{srv: s, since: s.cfg.Now(), key: newKey(), notices: noticeBurst}}
	t.renewed.Store(t.since.UnixNano())
	mc := s.mux
	mc.Handler = t
	t.mux = mux.Server(carrier.Gather(c.Conn), mc)
	carrier.Tune(c.Conn)
	r := t.identify()
	if r == reason.OK {
		r = s.join(t)
	}
	if r != reason.OK {
		t.mux.Close(r)
		t.interfaceAudit("tunnel", r, "")
	}
	return t
}

// finish ends what hung on a connection that ended with err.
func (s *Server) finish(t *tunnel, err error) {
	var ce *mux.ClosedError
	r := reason.TunnelClosed
	if errors.As(err, &ce) {
		r = ce.Reason
	}
	broke := ce != nil && !ce.Remote && abuse(r)
	if broke {
		s.bar(t.id.Device)
	}
	switch last := s.unlink(t); {
	case !t.ready.Load():
	case last:
		s.cfg.Access.Close(t.session, r)
	case broke:
		t.close(r) // who breaks a rule on one connection loses the others, too
	}
	t.flows.Wait()
	t.ended(ce)
}

// identify takes agent and device from the certificate, and from nothing else.
func (t *tunnel) identify() reason.Reason {
	if t.conn.Peer == nil {
		return reason.ClientCertAbsent
	}
	id, err := certid.Of(t.conn.Peer)
	if err != nil || id.Agent == "" || id.Device == "" {
		return reason.ClientCertBad
	}
	t.id = id
	t.conn.Peer = nil // not held for the tunnel's life
	return reason.OK
}

func newKey() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails
	return "T" + hex.EncodeToString(b[:])
}

// Message takes one MESSAGE, on the reader's goroutine.
func (t *tunnel) Message(p []byte) reason.Reason {
	if p[0] == carrier.Hello {
		if t.ready.Load() {
			return reason.FrameMalformed
		}
		// On its own goroutine: the stack that SM2 needs must not stay with an
		// idle tunnel.
		done := make(chan reason.Reason)
		go func() { done <- t.hello(p[1:]) }()
		return <-done
	}
	if !t.ready.Load() {
		return reason.NotAuthenticated
	}
	kind, body, err := t.seal.Open(p)
	if err != nil || kind != carrier.Renewal {
		return reason.MessageSealed
	}
	return t.reply(t.renew(body))
}

// hello checks who is there and answers. The checks stand in the order of
// docs/tunnel.md §5.
func (t *tunnel) hello(raw []byte) reason.Reason {
	s := t.srv
	m, err := s.cfg.Hello.Open(raw, wire.TypeHello) // 1 signature, receiver, time
	if err != nil {
		r := reason.MessageMalformed
		var re *envelope.RejectedError
		if errors.As(err, &re) {
			r = re.Reason
		}
		s.log.Info("tunnel hello refused", zap.String("agent_id", t.id.Agent), zap.Stringer("remote_addr", t.remote()),
			zap.Stringer("reason", r), zap.NamedError("error", errors.Unwrap(err)))
		t.interfaceAudit("hello", r, "")
		s.cfg.Alerts.Raise(alert.Alert{Code: alert.MessageRefused, Time: s.cfg.Now(), Reason: r, DeviceID: t.id.Device, Remote: t.remote().String(), Detail: "tunnel hello"})
		return r
	}
	h, err := wire.DecodeExtension[wire.TunnelHello](m.Body)
	if err == nil && h.Version == 1 {
		t.seal, err = carrier.NewSealer(h.Key, true)
		clear(h.Key)
	}
	if err != nil || h.Version != 1 || m.Header.Sender != t.id.Agent {
		r := reason.MessageMalformed
		if err == nil && h.Version == 1 {
			r = reason.MessageSender
		}
		t.interfaceAudit("hello", r, "")
		return r
	}
	r := t.admit(h)
	t.interfaceAudit("hello", r, h.UserID)
	if r != reason.OK {
		_ = t.reply(r)
		return r.Public()
	}
	if !h.Join {
		t.renewed.Store(s.cfg.Now().UnixNano())
	}
	if at, err := time.Parse(time.RFC3339Nano, m.Header.Timestamp); err == nil {
		t.mu.Lock()
		t.newest = at.Truncate(time.Second) // what is older was made before this tunnel
		t.mu.Unlock()
	}
	t.ready.Store(true)
	if s.known(t, h); t.session.Reason() != reason.OK {
		return t.session.Reason().Public() // it ended meanwhile, and may not have seen us
	}
	t.mux.Establish()
	s.metrics.hellos.Inc()
	return t.reply(reason.OK)
}

// admit compares the hello with the certificate, and asks access.
func (t *tunnel) admit(h *wire.TunnelHello) (r reason.Reason) {
	switch {
	case h.AgentID != t.id.Agent:
		return reason.AgentMismatch
	case h.DeviceID != t.id.Device:
		return reason.DeviceMismatch
	case h.AuthToken == "" || h.UserID == "":
		return reason.LoginRequired
	}
	if h.Join {
		return t.join(h)
	}
	t.session, r = t.srv.cfg.Access.Attach(policy.Facts{
		SessionID: t.key, UserID: h.UserID, DeviceID: t.id.Device, AgentID: t.id.Agent, Token: h.AuthToken,
	})
	if t.session != nil {
		t.session.Over(t.conn.Protocol.String(), t.conn.Suite)
	}
	return r
}

// renew is Table 14: whose it is comes from the tunnel (Q16).
func (t *tunnel) renew(body []byte) (r reason.Reason) {
	late := false
	defer func() {
		if !late {
			t.interfaceAudit("T14", r, t.userID)
		}
	}()
	m, err := wire.Decode[wire.Renewal](body, t.srv.cfg.Profile)
	if err != nil {
		return reason.MessageInvalid
	}
	at, err := wire.ParseTime(m.UpdateTime)
	if err != nil {
		return reason.MessageInvalid
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if late = at.Before(t.newest); late {
		if t.srv.late.first(t.id.Agent+" "+t.userID, at) {
			t.lateAudit(at)
		}
		return reason.OK // answered, and ignored (M80): made without a tunnel (M76), or come again
	}
	was := t.session.Facts().Token
	if r := t.srv.cfg.Access.Renew(t.session, m.AuthToken, at); r != reason.OK {
		return r
	}
	now := t.srv.cfg.Now()
	t.newest = at
	t.renewed.Store(now.UnixNano())
	if t.session.Facts().Token != was {
		t.previous, t.until = was, now.Add(rotation)
	}
	return reason.OK
}

// tokenCounts reports whether token is the session's.
func (t *shared) tokenCounts(token string) bool {
	if token == "" {
		return false
	}
	if token == t.session.Facts().Token {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return token == t.previous && t.srv.cfg.Now().Before(t.until)
}

// reply answers the hello or Table 14 in the form of Table 5 (Q9).
func (t *tunnel) reply(r reason.Reason) reason.Reason {
	m := &wire.Reply{Code: wire.Success, Result: r.Result()}
	if r != reason.OK {
		m.Code = wire.Failure
	}
	body, err := wire.Encode(m)
	if err != nil {
		return reason.InternalError
	}
	if err := t.seal.Seal(carrier.Reply, body, t.mux.Send); errors.Is(err, mux.ErrBusy) {
		return reason.BudgetExceeded
	}
	return reason.OK
}

// review closes a tunnel that lost its ground. It is called about each second.
func (t *tunnel) review(now time.Time) {
	if !t.ready.Load() {
		return // the mux gives it 10 s
	}
	if r := t.session.Reason(); r != reason.OK {
		t.farewell(r)
	} else if now.Sub(time.Unix(0, t.renewed.Load())) > t.srv.cfg.Limits.RenewWithin {
		t.farewell(reason.RenewalMissed)
	} else {
		t.moved()
	}
}

// farewell tells the agent why, and closes. Only the first call counts.
func (t *tunnel) farewell(r reason.Reason) {
	if t.leaving.Swap(true) {
		return
	}
	a := alert.Alert{
		Code: alert.SessionCut, Time: t.srv.cfg.Now(), Reason: r.Public(),
		UserID: t.userID, DeviceID: t.id.Device, SessionID: t.key, Remote: t.remote().String(),
	}
	if r == reason.RenewalMissed { // access raises the alerts of what it cuts
		a.Code = alert.RenewalMissed
		t.srv.cfg.Alerts.Raise(a)
	}
	t.tell(a)
	t.close(r.Public())
}

// ended accounts for a tunnel that is over.
func (t *tunnel) ended(ce *mux.ClosedError) {
	if ce == nil {
		return
	}
	s := t.srv
	s.metrics.closed.WithLabelValues(ce.Reason.String()).Inc()
	switch {
	case ce.Remote:
	case abuse(ce.Reason):
		s.cfg.Alerts.Raise(alert.Alert{Code: alert.TunnelAbuse, Time: s.cfg.Now(), Reason: ce.Reason, UserID: t.userID, DeviceID: t.id.Device, Remote: t.remote().String()})
	}
	s.log.Info("tunnel closed", zap.String("session_id", t.key), zap.String("agent_id", t.id.Agent), zap.String("device_id", t.id.Device),
		zap.String("user_id", t.userID), zap.Stringer("remote_addr", t.remote()), zap.Stringer("reason", ce.Reason), zap.Bool("by_peer", ce.Remote),
		zap.Duration("age", s.cfg.Now().Sub(t.since)), zap.Int64("bytes_in", t.in.Load()), zap.Int64("bytes_out", t.out.Load()))
	if t.ready.Load() {
		t.interfaceAudit("tunnel end", ce.Reason, t.userID)
	}
}

// interfaceAudit records an operation on the interface of clause 8.3.
func (t *tunnel) interfaceAudit(object string, r reason.Reason, user string) {
	t.srv.cfg.Audit.Write(&audit.Record{
		Time: t.srv.cfg.Now(), Kind: audit.Interface, GatewayID: t.srv.cfg.GatewayID, UserID: user, DeviceID: t.id.Device, AgentID: t.id.Agent,
		SessionID: t.key, Object: object, Protocol: t.conn.Protocol.String(), Suite: t.conn.Suite, Remote: t.remote().String(),
		Allowed: r == reason.OK, Result: r.String(), Code: r,
	})
}
