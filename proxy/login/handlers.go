package login

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

func (l *Login) routes() {
	l.mux = http.NewServeMux()
	// The login host.
	l.mux.HandleFunc("GET "+l.cfg.Host+Prefix+"start", l.start)
	l.mux.HandleFunc("GET "+l.cfg.Host+Prefix+"callback", l.callback)
	l.mux.HandleFunc("GET "+l.cfg.Host+Prefix+"leave", l.leave)
	l.mux.HandleFunc("POST "+l.cfg.Host+Prefix+"leave", l.leave)
	// Every application's host.
	l.mux.HandleFunc("GET "+Prefix+"enter", l.enter)
	l.mux.HandleFunc("GET "+Prefix+"logout", l.askLogout)
	l.mux.HandleFunc("POST "+Prefix+"logout", l.logout)
	l.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { l.deny(w, r, reason.HostUnknown, "") })
}

// ServeHTTP serves the login host, and the paths below [Prefix] of every other
// host. The caller has checked that the request's host is one of ours.
func (l *Login) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer") // addresses here carry codes
	h.Set("X-Content-Type-Options", "nosniff")
	l.mux.ServeHTTP(w, r)
}

func (l *Login) deny(w http.ResponseWriter, r *http.Request, why reason.Reason, detail string) {
	l.cfg.Deny(w, r, why, detail)
}

func (l *Login) fail(w http.ResponseWriter, r *http.Request, why reason.Reason, err error) {
	l.audit(r, audit.Login, "", "", why, err.Error())
	l.cfg.Logger.Info("login failed", zap.Stringer("reason", why), zap.String("remote_addr", r.RemoteAddr), zap.Error(err))
	l.deny(w, r, why, "")
}

// start begins a sign-in at the login host, or hands over at once when the
// browser is signed in to the site already.
func (l *Login) start(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	a := attempt{Host: q.Get("h"), Return: safeReturn(q.Get("rd")), Bind: q.Get("b")}
	if !l.cfg.Application(a.Host) || len(a.Bind) != 43 {
		l.deny(w, r, reason.RequestMalformed, "")
		return
	}
	fresh := q.Get("fresh") != ""
	if c, err := r.Cookie(cookieSite); err == nil && !fresh {
		if s, why := l.openSession(forSite, l.cfg.Host, c.Value, l.cfg.Now()); why == reason.OK {
			http.Redirect(w, r, l.handOverURL(r, s, a), http.StatusSeeOther)
			return
		}
	}
	to, err := l.provider.authorize(r.Context(), &a, l.callbackURL(r), fresh)
	if err != nil {
		l.fail(w, r, reason.UpstreamUnreachable, err)
		return
	}
	a.Expiry = l.cfg.Now().Add(stateLife).Unix()
	http.SetCookie(w, newCookie(cookieState, l.sealer.seal(forState, l.cfg.Host, marshalState(a)), stateLife))
	http.Redirect(w, r, to, http.StatusFound)
}

func (l *Login) callbackURL(r *http.Request) string { return "https://" + r.Host + Prefix + "callback" }

// callback ends the provider's part of a sign-in.
func (l *Login) callback(w http.ResponseWriter, r *http.Request) {
	a, ok := l.attempt(r)
	q := r.URL.Query()
	http.SetCookie(w, clearCookie(cookieState)) // a state serves once
	switch {
	case !ok:
		l.fail(w, r, reason.LoginFailed, errors.New("no login is in progress in this browser"))
		return
	case subtle.ConstantTimeCompare([]byte(a.State), []byte(q.Get("state"))) != 1:
		l.fail(w, r, reason.LoginFailed, errors.New("the state is not the one that was sent"))
		return
	case q.Has("iss") && q.Get("iss") != l.cfg.Issuer: // RFC 9207
		l.fail(w, r, reason.LoginFailed, errors.New("the answer comes from another issuer"))
		return
	case q.Has("error"):
		l.fail(w, r, reason.LoginFailed, errors.New("the provider refused the sign-in"))
		return
	case q.Get("code") == "":
		l.fail(w, r, reason.LoginFailed, errors.New("the answer carries no code"))
		return
	}
	id, err := l.provider.exchange(r.Context(), &a, q.Get("code"), l.callbackURL(r))
	if err != nil {
		why := reason.LoginFailed
		if e := (*errProvider)(nil); errors.As(err, &e) {
			why = reason.UpstreamUnreachable
		}
		l.fail(w, r, why, err)
		return
	}
	user := id.subject
	if l.cfg.Map != "claim" {
		var why reason.Reason
		if user, why = l.cfg.Resolve(r.Context(), l.cfg.Issuer, id.subject); why != reason.OK {
			l.fail(w, r, why, errors.New("subject "+id.subject+" of "+l.cfg.Issuer+" has no userId"))
			return
		}
	}
	if !isUser(user) {
		l.fail(w, r, reason.SubjectUnmapped, errNoUser)
		return
	}
	now := l.cfg.Now()
	s := session{id: newSessionID(), user: user, auth: id.auth, expiry: now.Add(l.cfg.Lifetime), level: id.level, factors: id.factors}
	l.audit(r, audit.Login, user, s.id, reason.OK, "level "+itoa(int(s.level)))
	http.SetCookie(w, newCookie(cookieSite, l.sealer.seal(forSite, l.cfg.Host, s.marshal()), l.cfg.Lifetime))
	l.handOver(w, r, s, a)
}

var errNoUser = errors.New("the userId has not 1 to 11 letters, digits or any of -._@")

func isUser(id string) bool {
	return len(id) >= 1 && len(id) <= 11 && strings.Trim(id, userLetters) == ""
}

// userLetters are what a userId may hold: it goes into headers and logs.
const userLetters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-._@"

func (l *Login) attempt(r *http.Request) (a attempt, ok bool) {
	c, err := r.Cookie(cookieState)
	if err != nil {
		return a, false
	}
	b, err := l.sealer.open(forState, l.cfg.Host, c.Value)
	if err != nil || json.Unmarshal(b, &a) != nil || l.cfg.Now().Unix() >= a.Expiry {
		return a, false
	}
	return a, true
}

// handover is what a hand-over code says.
type handover struct {
	ID      string `json:"i"`
	Session []byte `json:"s"`
	Return  string `json:"r"`
	Bind    string `json:"b"`
	Expiry  int64  `json:"e"`
}

// handOverURL is on the application's host, with a code that serves once,
// there, for 30 s, in this browser.
func (l *Login) handOverURL(r *http.Request, s session, a attempt) string {
	code := l.sealer.seal(forCode, a.Host, marshalState(handover{
		ID: randomText(9), Session: s.marshal(), Return: a.Return, Bind: a.Bind, Expiry: l.cfg.Now().Add(codeLife).Unix(),
	}))
	_, port := splitAuthority(r.Host)
	authority := a.Host
	if port != "" {
		authority += ":" + port
	}
	return "https://" + authority + Prefix + "enter?code=" + code
}

// handOver sends a browser that comes from the provider to the application.
func (l *Login) handOver(w http.ResponseWriter, r *http.Request, s session, a attempt) {
	to := l.handOverURL(r, s, a)
	if r.Header.Get("Sec-Fetch-Mode") != "navigate" {
		http.Redirect(w, r, to, http.StatusSeeOther)
		return
	}
	// A browser that comes from the provider's form holds every redirect that
	// follows to that page's form-action (CSP), which cannot know our
	// applications. A page of our own ends the chain.
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Refresh", "0; url="+to)
	fmt.Fprintf(w, handOverPage, html.EscapeString(to))
}

const handOverPage = `<!doctype html><html lang="zh-CN"><meta charset="utf-8"><title>玉门 Yumen</title>
<p>登录成功，正在返回应用…… <span lang="en">Signed in, going back to the application ...</span> <a href="%s">继续 · Continue</a></p></html>
`

// enter turns a hand-over code into the session cookie of an application's host.
func (l *Login) enter(w http.ResponseWriter, r *http.Request) {
	host, _ := splitAuthority(r.Host)
	var h handover
	var s session
	b, err := l.sealer.open(forCode, host, r.URL.Query().Get("code"))
	if err != nil || json.Unmarshal(b, &h) != nil || s.unmarshal(h.Session) != nil {
		l.fail(w, r, reason.LoginFailed, errors.New("the hand-over code does not open"))
		return
	}
	now := l.cfg.Now()
	expiry := time.Unix(h.Expiry, 0)
	bind, err := r.Cookie(cookieBinder)
	switch {
	case !now.Before(expiry):
		l.fail(w, r, reason.LoginFailed, errors.New("the hand-over code is too old"))
		return
	case err != nil || !bound(bind.Value, h.Bind):
		l.fail(w, r, reason.LoginFailed, errors.New("the hand-over code belongs to another browser"))
		return
	case !l.codes.take(h.ID, expiry, now):
		l.fail(w, r, reason.LoginFailed, errors.New("the hand-over code was used before"))
		return
	}
	http.SetCookie(w, newCookie(cookieSession, l.sealer.seal(forSession, host, s.marshal()), s.expiry.Sub(now)))
	http.SetCookie(w, clearCookie(cookieBinder))
	http.Redirect(w, r, safeReturn(h.Return), http.StatusSeeOther)
}

func bound(bind, digest string) bool {
	sum := sha256.Sum256([]byte(bind))
	return subtle.ConstantTimeCompare([]byte(base64.RawURLEncoding.EncodeToString(sum[:])), []byte(digest)) == 1
}

// askLogout asks before it ends a session: an image on a foreign page must not
// sign anybody out.
func (l *Login) askLogout(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; form-action 'self' https:; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "same-origin") // else the form's Origin would be "null"
	fmt.Fprintf(w, logoutPage, r.URL.Path)  // one of two fixed paths; the browser that went away needs no answer
}

const logoutPage = `<!doctype html><html lang="zh-CN"><meta charset="utf-8"><title>退出登录 · Sign out</title>
<h1>退出登录 <span lang="en">· Sign out</span></h1><form method="post" action="%s"><button>退出 · Sign out</button></form></html>`

// foreign reports whether a request was sent by another site's page. Browsers
// that do not say where it comes from name the origin of a form.
func foreign(r *http.Request) bool {
	if s := r.Header.Get("Sec-Fetch-Site"); s != "" {
		return s != "same-origin" && s != "none"
	}
	o := r.Header.Get("Origin")
	return o != "" && !strings.EqualFold(o, "https://"+r.Host)
}

// logout ends the session on every application of the site.
func (l *Login) logout(w http.ResponseWriter, r *http.Request) {
	if foreign(r) {
		l.deny(w, r, reason.RequestMalformed, "")
		return
	}
	host, port := splitAuthority(r.Host)
	to := url.URL{Scheme: "https", Host: l.cfg.Host, Path: Prefix + "leave"}
	if port != "" {
		to.Host += ":" + port
	}
	if c, err := r.Cookie(cookieSession); err == nil {
		if s, why := l.openSession(forSession, host, c.Value, l.cfg.Now()); why == reason.OK {
			l.audit(r, audit.Logout, s.user, s.id, reason.LoggedOut, "")
			if l.cfg.Ended != nil {
				l.cfg.Ended(s.id, s.expiry)
			}
			to.RawQuery = "t=" + l.sealer.seal(forLeave, l.cfg.Host, marshalState(farewell{s.user, l.cfg.Now().Add(codeLife).Unix()}))
		}
	}
	http.SetCookie(w, clearCookie(cookieSession))
	http.Redirect(w, r, to.String(), http.StatusSeeOther)
}

// farewell says on the login host who has just signed out at an application.
type farewell struct {
	User   string `json:"u"`
	Expiry int64  `json:"e"`
}

// leave clears the login host's own session, then the provider's. Who does not
// come from a sign-out of his own is asked first.
func (l *Login) leave(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodPost && foreign(r):
		l.deny(w, r, reason.RequestMalformed, "")
		return
	case q.Get("done") != "": // back from the provider
		l.deny(w, r, reason.LoggedOut, "")
		return
	case r.Method != http.MethodPost && !l.mayLeave(r, q.Get("t")):
		l.askLogout(w, r)
		return
	}
	http.SetCookie(w, clearCookie(cookieSite))
	if to := l.provider.logoutURL("https://" + r.Host + Prefix + "leave?done=1"); to != "" {
		http.Redirect(w, r, to, http.StatusSeeOther)
		return
	}
	l.deny(w, r, reason.LoggedOut, "")
}

// mayLeave reports whether token proves that the user of the site's session has
// just signed out. A browser without one has nothing to lose.
func (l *Login) mayLeave(r *http.Request, token string) bool {
	c, err := r.Cookie(cookieSite)
	if err != nil {
		return true
	}
	s, why := l.openSession(forSite, l.cfg.Host, c.Value, l.cfg.Now())
	if why != reason.OK {
		return true
	}
	var f farewell
	b, err := l.sealer.open(forLeave, l.cfg.Host, token)
	return err == nil && json.Unmarshal(b, &f) == nil && f.User == s.user && l.cfg.Now().Unix() < f.Expiry
}

func clearCookie(name string) *http.Cookie {
	c := newCookie(name, "", 0)
	c.MaxAge = -1
	return c
}
