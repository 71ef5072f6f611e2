package idp

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"embed"
	"encoding/hex"
	"html/template"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/text/language"

	"github.com/yumen-zt/yumen/internal/reason"
)

//go:embed login.html login.css
var files embed.FS

var page = template.Must(template.ParseFS(files, "login.html"))

// cookieName names the browser that begins a login. The prefix binds it to
// this host, without a domain and over TLS.
const cookieName = "__Host-yumen-login"

var matcher = language.NewMatcher([]language.Tag{language.English, language.Chinese})

// langOf returns the language that a browser asks for.
func langOf(r *http.Request) reason.Lang {
	for _, want := range []string{r.URL.Query().Get("lang"), strings.ReplaceAll(r.URL.Query().Get("ui_locales"), " ", ","), r.Header.Get("Accept-Language")} {
		tags, _, err := language.ParseAcceptLanguage(want)
		if err != nil || len(tags) == 0 {
			continue
		}
		if _, i, c := matcher.Match(tags...); c != language.No {
			return reason.Lang(i)
		}
	}
	return reason.English
}

func hashCookie(value string) string {
	sum := sha256.Sum256([]byte(value))
	return hex.EncodeToString(sum[:])
}

// authorize begins a login. The request belongs to this browser alone: who
// sends somebody else the link of a login cannot collect its result.
func (p *Provider) authorize(w http.ResponseWriter, r *http.Request) {
	value := ""
	if c, err := r.Cookie(cookieName); err == nil && len(c.Value) == 32 {
		value = c.Value
	} else {
		value = randomID()
		http.SetCookie(w, &http.Cookie{Name: cookieName, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	}
	p.inner.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), browserKey{}, hashCookie(value))))
}

// own returns the request id if this browser began it.
func (p *Provider) own(r *http.Request, id string) *request {
	c, err := r.Cookie(cookieName)
	if err != nil {
		return nil
	}
	q := p.mem.request(id)
	if q == nil || subtle.ConstantTimeCompare([]byte(q.browser), []byte(hashCookie(c.Value))) != 1 {
		return nil
	}
	return q
}

func (p *Provider) callback(w http.ResponseWriter, r *http.Request) {
	if q := p.own(r, r.URL.Query().Get("id")); q == nil || !q.done {
		p.show(w, r, http.StatusBadRequest, view{Stale: true})
		return
	}
	p.inner.ServeHTTP(w, r)
}

// view is what the page shows.
type view struct {
	Lang     string // html lang
	Text     texts
	Request  string
	Name     string
	Fault    string
	Advice   string
	Code     string
	Notice   string // the operator's own words
	Stale    bool
	Out      bool
	Other    string // link to the other language
	OtherTag string
}

func (p *Provider) loginPage(w http.ResponseWriter, r *http.Request) {
	q := p.own(r, r.URL.Query().Get("request"))
	if q == nil || q.done {
		p.show(w, r, http.StatusBadRequest, view{Stale: true})
		return
	}
	p.show(w, r, http.StatusOK, view{Request: q.id})
}

// login takes the form of the page.
func (p *Provider) login(w http.ResponseWriter, r *http.Request) {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" {
		p.show(w, r, http.StatusForbidden, view{Stale: true})
		return
	}
	q := p.own(r, r.PostFormValue("request"))
	if q == nil || q.done {
		p.show(w, r, http.StatusBadRequest, view{Stale: true})
		return
	}
	name, password := strings.TrimSpace(r.PostFormValue("name")), r.PostFormValue("password")
	why := reason.LoginFailed
	var a Account
	if name != "" && len(name) <= 200 && password != "" {
		a, why = p.cfg.SignIn(r.Context(), name, password, r.RemoteAddr)
	}
	e := Event{What: "login", User: a.ID, Client: q.in.ClientID, Remote: r.RemoteAddr, Reason: why}
	if e.User == "" {
		e.User = name
	}
	if why == reason.OK && !p.mem.finish(q.id, a.ID) {
		why = reason.LoginFailed
	}
	p.cfg.Audit(e)
	if why != reason.OK {
		notice := ""
		if why == reason.Locked {
			notice = p.cfg.Notice(a.ID)
		}
		p.show(w, r, why.Status(), view{Request: q.id, Name: name, Notice: notice, Fault: why.Text(langOf(r)), Advice: why.Advice(langOf(r)), Code: why.Code()})
		return
	}
	http.Redirect(w, r, "/authorize/callback?id="+url.QueryEscape(q.id), http.StatusSeeOther)
}

func (p *Provider) signedOut(w http.ResponseWriter, r *http.Request) {
	p.show(w, r, http.StatusOK, view{Out: true})
}

func (p *Provider) show(w http.ResponseWriter, r *http.Request, status int, v view) {
	lang := langOf(r)
	v.Text, v.Lang, v.OtherTag = english, "en", "zh"
	if lang == reason.Chinese {
		v.Text, v.Lang, v.OtherTag = chinese, "zh-CN", "en"
	}
	if v.Request != "" {
		v.Other = "/login?request=" + url.QueryEscape(v.Request) + "&lang=" + v.OtherTag
	}
	target := ""
	if q := p.mem.request(v.Request); q != nil {
		if u, err := url.Parse(q.in.RedirectURI); err == nil && !strings.ContainsAny(u.Host, "; ,") {
			target = " " + u.Scheme + "://" + u.Host // browsers check the redirects of a form, too
		}
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Language", v.Lang)
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"+target)
	w.WriteHeader(status)
	_ = page.Execute(w, v) // the browser that went away needs no page
}

func style(w http.ResponseWriter, _ *http.Request) {
	css, err := files.ReadFile("login.css")
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	w.Header().Set("Cache-Control", "max-age=3600")
	w.Write(css)
}

type texts struct{ Title, Name, Password, Submit, Stale, StaleAdvice, Out, Other string }

var (
	english = texts{"Sign in", "User name", "Password", "Sign in", "This sign-in has expired or was begun in another browser.",
		"Open the application again to start a new one.", "You are signed out.", "中文"}
	chinese = texts{"登录", "用户名", "口令", "登录", "本次登录已过期，或并非由此浏览器发起。", "请重新打开应用以发起新的登录。", "您已退出登录。", "English"}
)
