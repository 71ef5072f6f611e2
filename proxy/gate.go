package proxy

import (
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

// gate is what the walk needs of access; tests stand in for it.
type gate interface {
	app(id string) access.App
	acquire(f policy.Facts, app access.App, r *policy.Request, c access.Carrier) (lease, access.Refusal)
}

type lease interface {
	// Release reports whether access has let go of the exchange.
	Release(access.Usage) bool
	Lasts()
}

type liveGate struct{ a *access.Access }

func (g liveGate) app(id string) access.App { return g.a.App(id) }

func (g liveGate) acquire(f policy.Facts, app access.App, r *policy.Request, c access.Carrier) (lease, access.Refusal) {
	l, attached, no := g.a.Enter(f, app, r, c)
	switch {
	case !attached:
		return nil, g.refusal(f, no.Reason)
	case l == nil:
		return nil, no
	}
	return l, no
}

// refusal tells somebody whose session was revoked because of a lock that he is
// locked, with the administrator's words: another sign-in would not help him.
func (g liveGate) refusal(f policy.Facts, why reason.Reason) access.Refusal {
	if why != reason.SessionRevoked {
		return access.Refusal{Reason: why}
	}
	for _, l := range g.a.Locks() {
		if l.Kind == "user" && l.ID == f.UserID || l.Kind == "device" && l.ID == f.DeviceID && !f.Browser {
			if l.Until.IsZero() || time.Now().Before(l.Until) {
				return access.Refusal{Reason: reason.Locked, Message: l.Message}
			}
		}
	}
	return access.Refusal{Reason: why}
}

// carrier shows an exchange to access.
type carrier struct{ *Exchange }

// Kind returns what carries the exchange.
func (c carrier) Kind() access.Kind {
	switch c.Carrier {
	case exchange.H2:
		return access.H2
	case exchange.H3:
		return access.H3
	case exchange.SSE:
		return access.SSE
	case exchange.WebSocket:
		return access.WebSocket
	}
	return access.H1
}

// Brief reports whether the front end tells of exchanges that last.
func (c carrier) Brief() bool {
	return c.TellsLasting && (c.Carrier == exchange.H1 || c.Carrier == exchange.H2)
}

// Describe fills what access does not know of a record.
func (c carrier) Describe(r *audit.Record) { describe(c.Exchange, r) }

func describe(x *Exchange, r *audit.Record) {
	r.RequestID, r.Carrier = x.ID, string(x.Carrier)
	r.Method, r.Path = x.Method, x.Path
	r.Protocol, r.Suite = x.Conn.Protocol.String(), x.Conn.Suite
	r.Remote = x.ClientText()
	if x.App != nil {
		r.AppID = x.App.ID
	}
}
