package proxy

import (
	"errors"

	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy/upstream"
)

// tries is how many upstreams one request may be offered.
const tries = 3

// roundTrip sends req to an upstream of x's application. It turns to another
// one only when the first could not be reached, so that nothing of the request
// was sent and nothing of its body read. (The engine repeats a request on a
// connection that was used before and had closed; nothing else is repeated.)
// The caller says Release to the upstream that answered.
func (p *Proxy) roundTrip(x *Exchange, s *site, req *upstream.Request, b *body) (*upstream.Response, *apps.Upstream, error) {
	key := ""
	if x.App.Sticky() {
		if key = x.Facts.UserID; key == "" {
			key = x.ClientAddress()
		}
	}
	var err error = errNoUpstream
	now := x.Start
	for range min(len(x.App.Upstreams), tries) {
		u := x.App.Pick(now, key, "http", "https")
		if u == nil {
			if x.App.Down("http", "https") {
				return nil, nil, errAllDown
			}
			return nil, nil, err
		}
		var res *upstream.Response
		if res, err = s.engine.Do(x, x.App, u, req); err == nil {
			u.Report(outcomeOf(res.Status), now)
			return res, u, nil
		}
		now = p.cfg.Now()
		u.Report(faultOf(x, b, err), now)
		u.Release()
		if f, ok := errors.AsType[*upstream.Error](err); !ok || !f.Unsent || x.Over() || b != nil && b.touched.Load() {
			return nil, nil, err
		}
	}
	return nil, nil, err
}

var (
	errNoUpstream = denied(reason.UpstreamUnreachable, "no http upstream")
	errAllDown    = denied(reason.AppOffline, "every upstream fails its checks")
)

// outcomeOf judges an answer. What the application says of itself counts less
// than what it cannot say.
func outcomeOf(status int) apps.Outcome {
	switch status {
	case 502, 503, 504:
		return apps.Failing
	}
	return apps.Good
}

// faultOf judges a round trip that failed: what the client or access did is not
// the upstream's fault.
func faultOf(x *Exchange, b *body, err error) apps.Outcome {
	f, ok := errors.AsType[*upstream.Error](err)
	if !ok || x.Over() || b != nil && b.why() != reason.OK {
		return apps.Neutral
	}
	switch f.Why {
	case reason.UpstreamUnreachable, reason.UpstreamTimeout, reason.UpstreamBadResponse:
		return apps.Fault
	}
	return apps.Neutral
}
