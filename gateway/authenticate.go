package gateway

import (
	"strings"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy"
	"github.com/yumen-zt/yumen/proxy/login"
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
	if why == reason.LoginRequired && l.TakesBearer() {
		if token, sent := bearerToken(x); sent {
			if f, why = a.bearer(x, l, token); why != reason.OK {
				return f, why
			}
		}
	}
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

// bearerToken returns the access token that a program sent, and whether it sent
// something that is meant as one.
func bearerToken(x *proxy.Exchange) (token string, sent bool) {
	const scheme = "bearer "
	all := x.Header.Values("Authorization")
	if len(all) == 0 || len(all[0]) < len(scheme) || !strings.EqualFold(all[0][:len(scheme)], scheme) {
		return "", false
	}
	if len(all) > 1 {
		return "", true // two proofs: neither
	}
	return strings.Trim(all[0][len(scheme):], " "), true
}

// bearer finds the subject of an access token. One that is good ends here: the
// application could use it to be its user elsewhere.
func (a authenticator) bearer(x *proxy.Exchange, l *login.Login, token string) (policy.Facts, reason.Reason) {
	f, why, err := l.Bearer(x.Context(), token, x.Conn.Peer)
	if why != reason.OK {
		if ce := a.g.log.Check(zap.DebugLevel, "access token refused"); ce != nil {
			ce.Write(zap.String("request_id", x.ID), zap.Stringer("reason", why), zap.Error(err))
		}
		return f, why
	}
	x.Header = x.Header.Without("Authorization")
	return f, reason.OK
}

// Challenge sends a page without a session to the sign-in.
func (a authenticator) Challenge(x *proxy.Exchange, r reason.Reason) bool {
	l := a.g.site.Load().login
	if l != nil && l.TakesBearer() {
		switch _, sent := bearerToken(x); {
		case !sent:
			x.Add("WWW-Authenticate", `Bearer realm="yumen"`)
		default:
			x.Add("WWW-Authenticate", `Bearer realm="yumen", error="invalid_token"`)
		}
	}
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
