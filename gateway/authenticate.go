package gateway

import (
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy"
)

// authenticator finds the subject of a request: by the session cookie, with the
// device of the client certificate when there is one; else by the certificate
// alone.
type authenticator struct{ g *Gateway }

// Authenticate returns the facts of the subject of x.
func (a authenticator) Authenticate(x *proxy.Exchange) (policy.Facts, reason.Reason) {
	s := a.g.site.Load()
	if x.Conn.Peer == nil && s.demands(x.Host) {
		// From before a reload, when nobody asked for a certificate here. The
		// client comes back on another connection (RFC 9110 §15.5.20).
		x.Stream.CloseAfter()
		return policy.Facts{}, reason.HostMismatch
	}
	certificate, byCertificate := proxy.ClientCertificate{}.Authenticate(x)
	l := s.login
	if l == nil {
		return certificate, byCertificate
	}
	var few [4]string
	f, why := l.Session(x.Host, x.Header.AppendValues(few[:0], "Cookie"), x.Start)
	if why != reason.OK {
		if byCertificate == reason.OK {
			return certificate, reason.OK
		}
		return f, why
	}
	if x.Conn.Peer != nil {
		id, err := certid.Of(x.Conn.Peer)
		if err != nil || id.Device == "" {
			return f, reason.DeviceUnknown // a certificate that names no device is worse than none
		}
		if byCertificate == reason.OK && certificate.UserID != f.UserID || byCertificate == reason.ClientCertBad {
			return f, reason.UserMismatch // the two proofs name different people
		}
		f.DeviceID, f.AgentID, f.Browser = id.Device, id.Agent, false
		f.SessionID += "/" + id.Device // the same sign-in on another device is another session
	}
	return f, reason.OK
}

// Challenge sends a page without a session to the sign-in.
func (a authenticator) Challenge(x *proxy.Exchange, r reason.Reason) bool {
	l := a.g.site.Load().login
	if l == nil || proxy.WantsJSON(x) || x.Method != "GET" && x.Method != "HEAD" {
		return false
	}
	switch r {
	case reason.LoginRequired, reason.SessionExpired, reason.SessionRevoked, reason.SessionUnknown, reason.CookieInvalid, reason.LoggedOut:
	default:
		return false // a policy: say what is missing instead of asking again and again
	}
	bind, cookie := l.Bind(x.Header.Values("Cookie"))
	fresh := r == reason.SessionRevoked || r == reason.LoggedOut
	x.Add("Location", l.StartURL(x.Authority, x.Target, bind, fresh))
	if cookie != "" {
		x.Add("Set-Cookie", cookie)
	}
	x.Respond(302, proxy.PageHeader(), nil)
	return true
}
