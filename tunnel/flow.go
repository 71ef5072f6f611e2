package tunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

// flow is one flow: the [access.Carrier] behind its lease.
type flow struct {
	t       *tunnel
	f       *mux.Flow
	network string // "tcp" or "udp"
	request *wire.AccessRequest
	// upstream is what the request's address stands for (host:port), once
	// checked.
	upstream string
	cancel   context.CancelFunc // of the dial

	mu       sync.Mutex
	cut      reason.Reason // guarded by mu
	accepted bool          // guarded by mu; Table 13 said 200
}

// Open takes one OPEN, on the reader's goroutine.
func (t *tunnel) Open(f *mux.Flow, sealed []byte) {
	kind, body, err := t.seal.Open(sealed)
	if err != nil || kind != carrier.AccessRequest {
		t.mux.Close(reason.MessageSealed)
		_ = f.Close()
		return
	}
	x := &flow{t: t, f: f, network: "tcp"}
	if f.Datagrams() {
		x.network = "udp"
	}
	if t.open.Add(1) > int64(t.srv.cfg.Limits.Flows) {
		t.open.Add(-1)
		t.interfaceAudit("T12", reason.FlowLimit, t.userID)
		x.refuse(access.Refusal{Reason: reason.FlowLimit})
		return
	}
	t.flows.Add(1)
	go func() {
		defer t.flows.Done()
		defer t.open.Add(-1)
		x.serve(body)
	}()
}

// serve is the walk of one flow.
func (x *flow) serve(body []byte) {
	t, s := x.t, x.t.srv
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	x.cancel = cancel
	x.f.OnReset(cancel)                  // the agent gave up, or the tunnel ended
	app, r := x.check(body)              // 1 Table 12, identity, application, destination
	t.interfaceAudit("T12", r, t.userID) //
	if r != reason.OK {                  //
		x.refuse(access.Refusal{Reason: r}) //
		return
	}
	lease, no := s.cfg.Access.Acquire(t.session, s.cfg.Access.App(app.ID), // 2 grant and policy
		&policy.Request{Remote: t.remote().Addr().Unmap(), Protocol: t.conn.Protocol}, x)
	if lease == nil {
		x.refuse(no)
		return
	}
	t.keep(x)
	defer t.forget(x)
	defer x.release(lease)
	up, r := x.dial(ctx, app) // 3 the application
	if r != reason.OK {
		x.refuse(access.Refusal{Reason: r})
		return
	}
	if r := x.accept(); r != reason.OK { // 4 Table 13
		_ = up.Close()
		x.refuse(access.Refusal{Reason: r})
		return
	}
	r = mux.Relay(x.f, up, mux.RelayConfig{Broken: reason.UpstreamUnreachable, Idle: s.cfg.Limits.UDPIdle}) // 5 until an end, or the cut
	s.metrics.flows.WithLabelValues(x.network, r.String()).Inc()
}

// check compares Table 12 with who the tunnel's peer is, in the order of
// docs/tunnel.md §5 (M79), and finds the application.
func (x *flow) check(body []byte) (*apps.App, reason.Reason) {
	t, s := x.t, x.t.srv
	m, err := wire.Decode[wire.AccessRequest](body, s.cfg.Profile)
	if err != nil {
		s.log.Info("access request refused", zap.String("session_id", t.key), zap.Stringer("reason", reason.MessageInvalid), zap.Error(err))
		return nil, reason.MessageInvalid
	}
	x.request = m
	wrong := reason.OK
	switch {
	case m.AgentID != t.id.Agent:
		wrong = reason.AgentMismatch
	case m.DeviceID != t.id.Device:
		wrong = reason.DeviceMismatch
	case m.UserID != t.userID:
		wrong = reason.UserMismatch
	case !t.tokenCounts(m.AuthToken):
		wrong = reason.TokenUnknown
	}
	if wrong != reason.OK {
		s.cfg.Alerts.Raise(alert.Alert{
			Code: alert.TokenMisuse, Time: s.cfg.Now(), Reason: wrong, UserID: t.userID, DeviceID: t.id.Device, SessionID: t.key,
			Remote: t.remote().String(), Detail: "a field of Table 12 is not this tunnel's",
		})
		return nil, wrong
	}
	app := s.apps.Load().ID(m.AppID)
	if app == nil {
		return nil, reason.AppUnknown
	}
	reached := false
	if m.Port > 0 && m.Port <= 65535 {
		x.upstream, reached = app.Reach(x.network, m.IP, uint16(m.Port))
	}
	switch {
	case !reached:
		// Whoever may not use the application must not learn its addresses:
		// access decides between the two after this.
		if !x.granted(app) {
			return nil, reason.AppNotGranted
		}
		s.log.Info("destination refused", zap.String("session_id", t.key), zap.String("app_id", app.ID), zap.String("upstream", x.addr()), zap.Stringer("reason", reason.DestinationRule))
		return nil, reason.DestinationRule
	case app.State(s.cfg.Now()) != apps.Online:
		if !x.granted(app) {
			return nil, reason.AppNotGranted
		}
		return nil, reason.AppOffline
	}
	if m.AppName != app.Name {
		s.log.Info("application name differs", zap.String("session_id", t.key), zap.String("app_id", app.ID))
		s.metrics.names.Inc()
	}
	return app, reason.OK
}

// granted reports whether the session has the application at all.
func (x *flow) granted(app *apps.App) bool {
	t := x.t
	d := t.srv.cfg.Access.Explain(t.session.Facts(), app.ID, policy.Request{Remote: t.remote().Addr().Unmap(), Protocol: t.conn.Protocol})
	return d.Decision.Reason == reason.OK
}

func (x *flow) addr() string {
	return net.JoinHostPort(x.request.IP, strconv.Itoa(x.request.Port))
}

// dial connects to the application by the gateway's only dialer.
func (x *flow) dial(ctx context.Context, app *apps.App) (net.Conn, reason.Reason) {
	s := x.t.srv
	local, _ := netip.ParseAddrPort(x.t.conn.LocalAddr().String())
	up, err := s.apps.Load().Dial(apps.WithSource(ctx, x.t.remote(), local), app, x.network, x.upstream)
	if err == nil {
		return up, reason.OK
	}
	x.mu.Lock()
	cut := x.cut
	x.mu.Unlock()
	r := reason.UpstreamUnreachable
	var no *apps.RefusedError
	var ne net.Error
	switch {
	case cut != reason.OK:
		r = cut
	case errors.As(err, &no):
		r = reason.AddressRefused
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		r = reason.UpstreamTimeout
	}
	s.log.Info("application not reached", zap.String("session_id", x.t.key), zap.String("app_id", app.ID), zap.String("upstream", x.upstream), zap.Stringer("reason", r), zap.Error(err))
	return nil, r
}

// accept sends Table 13 with 200, unless the lease was cut meanwhile.
func (x *flow) accept() reason.Reason {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.cut != reason.OK {
		return x.cut
	}
	x.accepted = true
	_ = x.answer(reason.OK, "", x.f.Accept) // it fails when the flow is over: Relay sees that
	return reason.OK
}

// refuse sends Table 13 with 400 and the reason that a stranger may know, and
// ends the flow. What it cannot carry goes by Table 15.
func (x *flow) refuse(no access.Refusal) {
	r := no.Reason.Public()
	_ = x.answer(no.Reason, x.particulars(no), func(p []byte) error { return x.f.Refuse(r, p) })
	_ = x.f.Close()
	x.t.srv.metrics.flows.WithLabelValues(x.network, no.Reason.String()).Inc()
	if (no.PolicyID != "" || no.Message != "") && x.request != nil {
		a := alert.Alert{Code: alert.AccessRefused, Reason: r, AppID: x.request.AppID}
		if no.PolicyID != "" {
			a.Detail = "policy " + no.PolicyID
		}
		if no.Message != "" {
			a.Detail += " " + no.Message
		}
		x.t.tell(a)
	}
}

// answer seals Table 13, with more behind the reason's text, and has send
// queue it.
func (x *flow) answer(r reason.Reason, more string, send func([]byte) error) error {
	m := &wire.AccessReply{Code: wire.Success, Result: r.Result() + more}
	if r != reason.OK {
		m.Code = wire.Failure
	}
	body, err := wire.Encode(m)
	if err != nil {
		return err
	}
	return x.t.seal.Seal(carrier.AccessReply, body, send)
}

func (x *flow) release(l *access.Lease) {
	in, out := x.f.BytesIn(), x.f.BytesOut()
	x.t.in.Add(in)
	x.t.out.Add(out)
	x.t.srv.metrics.bytes("in").Add(float64(in))
	x.t.srv.metrics.bytes("out").Add(float64(out))
	l.Release(access.Usage{BytesIn: in, BytesOut: out})
}

// Kind implements [access.Carrier].
func (x *flow) Kind() access.Kind {
	if x.network == "udp" {
		return access.UDP
	}
	return access.TCP
}

// Cut implements [access.Carrier]: the agent is told why by a reset and by
// Table 15, and the upstream is freed at once.
func (x *flow) Cut(r reason.Reason) {
	x.mu.Lock()
	x.cut = r
	accepted := x.accepted
	x.mu.Unlock()
	x.t.tell(alert.Alert{Code: alert.SessionCut, Reason: r.Public(), AppID: x.request.AppID, Detail: x.network + " " + x.addr()})
	if accepted {
		x.f.Reset(r.Public())
	} else {
		x.cancel() // serve answers by Table 13
	}
	if r := x.t.session.Reason(); r != reason.OK {
		x.t.farewell(r) // the whole session is over
	}
}

// Describe implements [access.Describer].
func (x *flow) Describe(rec *audit.Record) {
	rec.FlowID = x.t.key + "/" + strconv.FormatUint(uint64(x.f.ID()), 10)
	rec.Protocol, rec.Suite = x.t.conn.Protocol.String(), x.t.conn.Suite
	rec.Remote = x.t.remote().String()
	rec.Upstream = x.network + "://" + x.upstream
}
