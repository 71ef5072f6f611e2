package proxy

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy/exchange"
	"github.com/yumen-zt/yumen/proxy/h3"
)

// deniedError ends a walk. detail is for the log alone.
type deniedError struct {
	why      reason.Reason
	policyID string
	message  string // of a lock, for the subject
	detail   string
	audited  bool // access has written the record
}

// Error names reason and detail.
func (e *deniedError) Error() string { return e.why.String() + ": " + e.detail }

func denied(why reason.Reason, detail string) *deniedError {
	return &deniedError{why: why, detail: detail}
}

// newRequestID returns 96 random bits. It tells requests apart and keeps no
// secret.
func newRequestID() string {
	var b [12]byte
	binary.LittleEndian.PutUint64(b[:], rand.Uint64()) // ChaCha8, seeded by the system
	binary.LittleEndian.PutUint32(b[8:], rand.Uint32())
	var text [2 * len(b)]byte
	hex.Encode(text[:], b[:])
	return string(text[:])
}

// challengeable are the refusals that a new sign-in may lift.
func challengeable(r reason.Reason) bool { return r.Status() == 401 }

// deny answers a request that was refused, and returns err itself when an
// answer had begun already.
func (p *Proxy) deny(x *Exchange, err error) error {
	d, ok := err.(*deniedError)
	if !ok {
		d = denied(reason.InternalError, err.Error())
	}
	x.Why = d.why
	p.metrics.refused.WithLabelValues(d.why.String()).Inc()
	if ce := p.cfg.Logger.Check(zap.DebugLevel, "request refused"); ce != nil {
		ce.Write(zap.String("request_id", x.ID), zap.Stringer("reason", d.why), zap.String("detail", d.detail),
			zap.String("remote_addr", x.ClientText()))
	}
	if !d.audited && !x.Leased { // else access writes the record of its end
		p.record(x, d.why, d.policyID, d.detail)
	}
	if abusive(d.why) {
		p.cfg.Alerts.Raise(alert.Alert{Code: alert.RequestAbuse, Time: p.cfg.Now(), Reason: d.why,
			Remote: x.ClientAddress(), Detail: d.detail})
	}
	if x.Started() {
		return d
	}
	if d.why.Status() == 400 || x.Body != nil || x.Carrier == exchange.WebSocket {
		x.Stream.CloseAfter() // nothing after a request that was not understood, or not read
	}
	x.Add("X-Request-Id", x.ID)
	if challengeable(d.why) && x.App != nil && p.cfg.Authenticate.Challenge(x, d.why) {
		return nil
	}
	p.page(x, d)
	return nil
}

// abusive are the refusals that no honest client meets.
func abusive(r reason.Reason) bool {
	switch r {
	case reason.RequestMalformed, reason.PathAmbiguous, reason.HeaderRefused, reason.UpgradeRefused, reason.LoopDetected:
		return true
	}
	return false
}

// malformed counts a head that the front end rejected before it was a request.
func (p *Proxy) malformed(c *exchange.Conn, detail error) {
	carrier := exchange.H1
	if c.ALPN == h3.ALPN {
		carrier = exchange.H3
	}
	p.metrics.refused.WithLabelValues(reason.RequestMalformed.String()).Inc()
	p.cfg.Audit.Write(&audit.Record{
		Time: p.cfg.Now(), Kind: audit.Decision, GatewayID: p.cfg.GatewayID, Carrier: string(carrier),
		Protocol: c.Protocol.String(), Suite: c.Suite, Remote: c.Remote.String(),
		Result: reason.RequestMalformed.String(), Code: reason.RequestMalformed, Detail: detail.Error(),
	})
	p.cfg.Alerts.Raise(alert.Alert{Code: alert.RequestAbuse, Time: p.cfg.Now(), Reason: reason.RequestMalformed,
		Remote: c.Remote.Addr().String(), Detail: detail.Error()})
}

// record writes the audit record of a decision that access did not make.
func (p *Proxy) record(x *Exchange, why reason.Reason, policyID, detail string) {
	r := audit.Record{
		Time: p.cfg.Now(), Kind: audit.Decision, GatewayID: p.cfg.GatewayID,
		UserID: x.Facts.UserID, DeviceID: x.Facts.DeviceID, AgentID: x.Facts.AgentID, SessionID: x.Facts.SessionID,
		PolicyID: policyID, Allowed: why == reason.OK, Result: why.String(), Code: why, Detail: detail,
	}
	describe(x, &r)
	if x.App == nil {
		r.Object = x.Authority
	}
	p.cfg.Audit.Write(&r)
}
