package proxy

import (
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

// The walk of one request, in order:
//
//	1 route         method, target, host and fields have one reading; host and path → application
//	2 authenticate  certificate or sign-in → facts
//	3 acquire       grant and policy → lease; from here on access can cut the exchange
//	4 rewrite       the upstream's request, built anew: the subject's identity, no field of the hop
//	5 forward       to the upstream and back, streaming
//	6 release       the lease, with what was used
//
// A step that refuses returns a *deniedError; it ends the walk, and deny
// answers. serve itself returns an error when an answer that has begun cannot
// be completed: the front end resets the stream then.
func (p *Proxy) serve(x *Exchange) (err error) {
	defer p.contain(x, &err)
	p.metrics.inFlight.Inc()
	s := p.site.Load()
	defer p.finish(x, s)

	x.ID = newRequestID()
	if err := p.route(x, s); err != nil { // 1
		return p.deny(x, err)
	}
	if h := p.handler(x); h != nil { // the gateway's own pages
		if x.Connect != "" {
			return p.deny(x, denied(reason.UpgradeRefused, "of the gateway's own page"))
		}
		return p.serveHandler(x, h)
	}
	if x.App == nil {
		return p.deny(x, denied(reason.HostUnknown, x.Host))
	}
	if x.Public {
		p.record(x, reason.OK, "", "public path")
		return p.forward(x, s) // 4, 5
	}
	if preflight(x) {
		x.Public = true // no identity goes with it
		p.record(x, reason.OK, "", "CORS preflight")
		return p.forward(x, s) // 4, 5
	}
	facts, why := p.cfg.Authenticate.Authenticate(x) // 2
	if why != reason.OK {
		return p.deny(x, denied(why, ""))
	}
	x.Facts = facts
	x.Asked = policy.Request{Remote: x.Client().Addr(), Protocol: x.Conn.Protocol, Method: x.Method, Path: x.Path}
	l, no := p.gate.acquire(facts, s.apps[x.App].handle, &x.Asked, carrier{x}) // 3
	if no.Reason != reason.OK {
		return p.deny(x, &deniedError{why: no.Reason, policyID: no.PolicyID, message: no.Message, audited: true})
	}
	x.Leased = true
	x.OnLasting(l)
	defer func() { // 6
		x.Ended = p.cfg.Now()
		if !l.Release(access.Usage{End: x.Ended, BytesIn: x.BytesIn.Load(), BytesOut: x.BytesOut.Load(), Status: x.Status, Reason: x.Why}) {
			x.Keep()
		}
	}()
	return p.forward(x, s) // 4, 5
}

// route gives the request its one reading and finds its application.
func (p *Proxy) route(x *Exchange, s *site) error {
	if err := p.cfg.Forwarders.client(x); err != nil {
		return err
	}
	if err := p.checkFields(x); err != nil {
		return err
	}
	if err := p.checkHost(x); err != nil {
		return err
	}
	switch x.Method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS",
		"PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH":
	default:
		return denied(reason.MethodRefused, x.Method)
	}
	var err error
	if x.Path, x.Query, err = canonicalTarget(x.Target); err != nil {
		if errors.Is(err, errTargetForm) || errors.Is(err, errTargetLong) || errors.Is(err, errTargetByte) {
			return denied(reason.RequestMalformed, err.Error())
		}
		return denied(reason.PathAmbiguous, err.Error())
	}
	if x.Length > p.cfg.Limits.BodyBytes && p.cfg.Limits.BodyBytes > 0 {
		return denied(reason.BodyTooLarge, "Content-Length")
	}
	if err := checkUpgrade(x); err != nil {
		return err
	}
	if x.App = s.registry.Host(x.Host); x.App != nil {
		x.Public = x.App.Public(x.Path)
	}
	return nil
}

// checkFields wants few, clean and unambiguous fields.
func (p *Proxy) checkFields(x *Exchange) error {
	if len(x.Header) > p.cfg.Limits.HeaderFields {
		return denied(reason.HeaderTooLarge, fmt.Sprintf("%d fields", len(x.Header)))
	}
	total, lengths, looped := len(x.Target)+len(x.Authority), 0, false
	for i := range x.Header {
		f := &x.Header[i]
		total += len(f.Name) + len(f.Value) + 4
		switch {
		case !cleanName(f.Name):
			return denied(reason.HeaderRefused, "field name "+f.Name)
		case !cleanValue(f.Value):
			return denied(reason.HeaderRefused, "field value of "+f.Name)
		case f.Is("Host") && f.Value != x.Authority:
			return denied(reason.RequestMalformed, "Host and :authority differ")
		case f.Is("Content-Length"):
			if lengths++; lengths > 1 || f.Value != strconv.FormatInt(x.Length, 10) {
				return denied(reason.RequestMalformed, "Content-Length is not the body's")
			}
		case f.Is("Transfer-Encoding"):
			return denied(reason.RequestMalformed, "Transfer-Encoding") // the front end takes the one that frames
		case f.Is("Expect") && !strings.EqualFold(f.Value, "100-continue"):
			return denied(reason.HeaderRefused, "Expect")
		case f.Is("Via") && strings.Contains(f.Value, p.mark):
			looped = true
		}
	}
	if total > p.cfg.Limits.HeaderBytes {
		return denied(reason.HeaderTooLarge, fmt.Sprintf("%d bytes", total))
	}
	if looped {
		return denied(reason.LoopDetected, "Via")
	}
	return nil
}

// checkHost wants one host, the same as the handshake's server name, so that
// the certificate, the route and the policy speak of one application.
func (p *Proxy) checkHost(x *Exchange) error {
	if known := x.Conn.Authority(); known != nil && known.Sent == x.Authority {
		x.Host, x.Port = known.Host, known.Port
		return nil
	}
	var err error
	if x.Host, x.Port, err = parseAuthority(x.Authority); err != nil {
		if errors.Is(err, errHostAddress) {
			return denied(reason.HostMismatch, err.Error())
		}
		return denied(reason.RequestMalformed, err.Error())
	}
	if x.Conn.SNI == "" {
		// The standard of TLCP knows no server name, and clients exist that send
		// none. A host that demands a device's certificate still gets it.
		if !p.cfg.AllowNoSNI && x.Conn.Protocol != policy.TLCP {
			return denied(reason.HostMismatch, "no server name")
		}
	} else if sni, err := apps.CanonicalHost(x.Conn.SNI); err != nil || sni != x.Host {
		if err == nil && x.Connect != "" && p.cfg.Coalesces != nil && p.cfg.Coalesces(sni, x.Host) {
			return nil
		}
		return denied(reason.HostMismatch, "server name "+x.Conn.SNI)
	}
	known := &exchange.Authority{Sent: strings.Clone(x.Authority), Host: x.Host}
	if strings.HasPrefix(known.Sent, known.Host) { // a part of it and not of a whole head
		known.Host = known.Sent[:len(known.Host)]
	} else {
		known.Host = strings.Clone(known.Host)
	}
	known.Port = known.Sent[len(known.Sent)-len(x.Port):]
	x.Conn.SetAuthority(known)
	return nil
}

// checkUpgrade passes RFC 6455 handshakes on HTTP/1.1 and refuses every other
// upgrade. It makes WebSocket and SSE of the carrier.
func checkUpgrade(x *Exchange) error {
	if x.Connect != "" {
		return checkConnect(x)
	}
	if !x.Header.Has("Upgrade") && !x.Header.HasToken("Connection", "upgrade") && !x.Header.Has("HTTP2-Settings") {
		if x.Method == "GET" && x.Header.HasToken("Accept", "text/event-stream") {
			x.Carrier = exchange.SSE
		}
		return nil
	}
	if why := webSocketFault(x); why != "" {
		return denied(reason.UpgradeRefused, why)
	}
	x.Carrier = exchange.WebSocket
	return nil
}

// handler finds the page of the gateway's own that serves x.
func (p *Proxy) handler(x *Exchange) http.Handler {
	if x.App != nil && x.Path == jwksPath {
		return p.assertion
	}
	for i := range p.cfg.Handlers {
		h := &p.cfg.Handlers[i]
		if (h.Host == x.Host || h.Host == "" && x.App != nil) && strings.HasPrefix(x.Path, h.Prefix) {
			return h.Handler
		}
	}
	return nil
}

// finish counts the request.
func (p *Proxy) finish(x *Exchange, s *site) {
	p.metrics.inFlight.Dec()
	f := s.figures(x.App)
	f.requests.of(p.metrics, f.app, x.Status).Inc()
	if x.Ended.IsZero() {
		x.Ended = p.cfg.Now()
	}
	took := x.Ended.Sub(x.Start)
	f.duration.Observe(took.Seconds())
	if p.cfg.Log != nil {
		p.log(x, took)
	}
	if n := x.BytesIn.Load(); n > 0 {
		f.in.Add(float64(n))
	}
	if n := x.BytesOut.Load(); n > 0 {
		f.out.Add(float64(n))
	}
}

// contain keeps a panic inside its request (R22): the gateway and the other
// requests of the connection go on.
func (p *Proxy) contain(x *Exchange, err *error) {
	v := recover()
	if v == nil {
		return
	}
	p.metrics.panics.Inc()
	x.Keep()
	p.cfg.Logger.Error("request panicked", zap.String("request_id", x.ID), zap.Any("panic", v),
		zap.ByteString("stack", debug.Stack()), zap.Stringer("reason", reason.InternalError))
	p.cfg.Alerts.Raise(alert.Alert{Code: alert.InternalFault, Time: p.cfg.Now(), Reason: reason.InternalError, Detail: "request " + x.ID})
	if x.Started() {
		*err = errors.New("serve request: panic")
		return
	}
	*err = p.deny(x, denied(reason.InternalError, "panic"))
}
