package control

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

const (
	issuer   = "https://login.test:9443"
	redirect = "https://gw.test/.yumen/callback"
	goodbye  = "https://gw.test/bye"
)

// loginWorld is a control center with a provider and the client "gw".
func loginWorld(t *testing.T, edit ...func(*Config)) *world {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("client secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, append(edit, func(c *Config) {
		c.IDP = &IDPConfig{Issuer: issuer, Listen: []string{"127.0.0.1:0"}, Clients: []IDPClient{
			{ID: "gw", SecretFile: secret, RedirectURIs: []string{redirect}, LogoutURIs: []string{goodbye}},
			{ID: "other", RedirectURIs: []string{"https://other.test/cb"}},
		}}
	})...)
	w.user("alice")
	return w
}

// browser is an http.Client with cookies that stops at the first redirect away
// from the provider.
func (w *world) browser() *http.Client {
	jar, _ := cookiejar.New(nil)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots, ServerName: "login.test"},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", w.s.Addrs().IDP[0].String())
		}}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Jar: jar, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if r.URL.Host != "login.test:9443" {
			return http.ErrUseLastResponse
		}
		return nil
	}}
}

// rp is the relying party of the tests: go-oidc and oauth2.
type rp struct {
	w        *world
	provider *oidc.Provider
	cfg      oauth2.Config
	ctx      context.Context
	verifier string
}

func (w *world) rp() *rp {
	w.t.Helper()
	ctx := oidc.ClientContext(w.t.Context(), w.browser())
	p, err := oidc.NewProvider(ctx, issuer)
	if err != nil {
		w.t.Fatal(err)
	}
	return &rp{w: w, provider: p, ctx: ctx, verifier: oauth2.GenerateVerifier(), cfg: oauth2.Config{ClientID: "gw", ClientSecret: "client secret",
		RedirectURL: redirect, Endpoint: p.Endpoint(), Scopes: []string{"openid", "profile"}}}
}

func (r *rp) authURL(o ...oauth2.AuthCodeOption) string {
	return r.cfg.AuthCodeURL("the-state", append(o, oauth2.S256ChallengeOption(r.verifier), oidc.Nonce("the-nonce"))...)
}

var requestField = regexp.MustCompile(`name="request" value="([^"]+)"`)

// page opens the login page and returns the request's id.
func page(t *testing.T, b *http.Client, address string, header ...string) (id, html string, h http.Header) {
	t.Helper()
	q, _ := http.NewRequest("GET", address, nil)
	for i := 0; i < len(header); i += 2 {
		q.Header.Set(header[i], header[i+1])
	}
	resp, err := b.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if m := requestField.FindSubmatch(body); m != nil {
		id = string(m[1])
	}
	return id, string(body), resp.Header
}

// submit posts the form and returns the last answer.
func submit(t *testing.T, b *http.Client, id, name, password string) (*http.Response, string) {
	t.Helper()
	resp, err := b.PostForm(issuer+"/login", url.Values{"request": {id}, "name": {name}, "password": {password}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp, string(body)
}

// code signs alice in and returns the code.
func (r *rp) code(t *testing.T, b *http.Client, name string) string {
	t.Helper()
	id, html, _ := page(t, b, r.authURL())
	if id == "" {
		t.Fatalf("no login page: %.500s", html)
	}
	resp, body := submit(t, b, id, name, password)
	to, err := resp.Location()
	if err != nil || !strings.HasPrefix(to.String(), redirect) || to.Query().Get("state") != "the-state" {
		t.Fatalf("after the login: %d %v %v %.300s", resp.StatusCode, to, err, body)
	}
	return to.Query().Get("code")
}

func (r *rp) exchange(code string) (*oauth2.Token, *oidc.IDToken, error) {
	tok, err := r.cfg.Exchange(r.ctx, code, oauth2.VerifierOption(r.verifier))
	if err != nil {
		return nil, nil, err
	}
	raw, _ := tok.Extra("id_token").(string)
	id, err := r.provider.Verifier(&oidc.Config{ClientID: "gw", SupportedSigningAlgs: []string{"ES256"}}).Verify(r.ctx, raw)
	return tok, id, err
}

func TestGCR002_M45_OIDCLoginEndToEnd(t *testing.T) {
	w := loginWorld(t)
	r, b := w.rp(), w.browser()
	start := time.Now()
	tok, id, err := r.exchange(r.code(t, b, "Alice"))
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		ACR      string   `json:"acr"`
		AMR      []string `json:"amr"`
		AuthTime int64    `json:"auth_time"`
		Name     string   `json:"preferred_username"`
	}
	if err := id.Claims(&claims); err != nil {
		t.Fatal(err)
	}
	if id.Subject != "USR00000001" || id.Nonce != "the-nonce" || claims.ACR != "1" || len(claims.AMR) != 1 || claims.AMR[0] != "pwd" || claims.Name != "alice" {
		t.Errorf("token of %s, nonce %q, claims %+v", id.Subject, id.Nonce, claims)
	}
	if age := time.Now().Unix() - claims.AuthTime; age < 0 || age > 10 || time.Since(start) > 30*time.Second {
		t.Errorf("auth_time is %d s ago", age)
	}
	info, err := r.provider.UserInfo(r.ctx, oauth2.StaticTokenSource(tok))
	if err != nil || info.Subject != "USR00000001" {
		t.Errorf("userinfo %+v, %v", info, err)
	}
	if got := w.audited("oidc gw"); len(got) != 1 || !got[0].Allowed || got[0].UserID != "USR00000001" {
		t.Errorf("audit %+v", got)
	}
	// The keys are the store's: what was signed before a restart verifies after it.
	raw := tok.Extra("id_token").(string)
	w.stop()
	w.start()
	again := w.rp()
	if _, err := again.provider.Verifier(&oidc.Config{ClientID: "gw", SupportedSigningAlgs: []string{"ES256"}}).Verify(again.ctx, raw); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	// The log-out goes to a registered address only.
	resp, err := w.browser().Get(issuer + "/end_session?id_token_hint=" + raw + "&post_logout_redirect_uri=" + url.QueryEscape(goodbye) + "&state=s")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if to, err := resp.Location(); err != nil || to.String() != goodbye+"?state=s" {
		t.Errorf("end_session: %d %v", resp.StatusCode, to)
	}
	resp, err = w.browser().Get(issuer + "/end_session?id_token_hint=" + raw + "&post_logout_redirect_uri=https://evil.test/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if to, err := resp.Location(); err == nil && strings.Contains(to.String(), "evil") {
		t.Errorf("end_session sent the browser to %v", to)
	}
}

func TestGCR002_M157_CodeFlowAttacks(t *testing.T) {
	w := loginWorld(t)
	r, b := w.rp(), w.browser()
	// A code works once, and for its verifier.
	code := r.code(t, b, "alice")
	if _, _, err := r.exchange(code); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.exchange(code); err == nil {
		t.Error("a code worked twice")
	}
	code = r.code(t, b, "alice")
	right := r.verifier
	r.verifier = oauth2.GenerateVerifier()
	if _, _, err := r.exchange(code); err == nil {
		t.Error("a wrong verifier was accepted")
	}
	r.verifier = right
	if _, _, err := r.exchange(code); err == nil {
		t.Error("the code survived a wrong verifier")
	}
	// Another client cannot spend it; a wrong secret neither.
	code = r.code(t, b, "alice")
	thief := *r
	thief.cfg.ClientID, thief.cfg.ClientSecret = "other", ""
	if _, err := thief.cfg.Exchange(r.ctx, code, oauth2.VerifierOption(r.verifier)); err == nil {
		t.Error("another client spent the code")
	}
	code = r.code(t, b, "alice")
	thief = *r
	thief.cfg.ClientSecret = "guess"
	if _, err := thief.cfg.Exchange(r.ctx, code, oauth2.VerifierOption(r.verifier)); err == nil {
		t.Error("a wrong client secret was accepted")
	}
	// Requests that must not begin.
	for name, address := range map[string]string{
		"no PKCE":            r.cfg.AuthCodeURL("s"),
		"plain PKCE":         r.cfg.AuthCodeURL("s", oauth2.SetAuthURLParam("code_challenge", right), oauth2.SetAuthURLParam("code_challenge_method", "plain")),
		"other redirect":     strings.Replace(r.authURL(), url.QueryEscape(redirect), url.QueryEscape("https://evil.test/"), 1),
		"prompt none":        r.authURL(oauth2.SetAuthURLParam("prompt", "none")),
		"implicit":           strings.Replace(r.authURL(), "response_type=code", "response_type=id_token", 1),
		"client that is not": strings.Replace(r.authURL(), "client_id=gw", "client_id=nobody", 1),
	} {
		if id, _, _ := page(t, w.browser(), address); id != "" {
			t.Errorf("%s: a login page came", name)
		}
	}
	// A login belongs to the browser that began it: who sends a victim the page
	// of their own request gets nothing.
	attacker, victim := w.browser(), w.browser()
	id, _, _ := page(t, attacker, r.authURL())
	if got, _, _ := page(t, victim, issuer+"/login?request="+id); got != "" {
		t.Error("another browser got the page")
	}
	if resp, _ := submit(t, victim, id, "alice", password); resp.StatusCode != 400 {
		t.Errorf("another browser signed in for the attacker: %d", resp.StatusCode)
	}
	// And without the password there is no code.
	resp, err := attacker.Get(issuer + "/authorize/callback?id=" + id)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("callback without a login: %d", resp.StatusCode)
	}
}

func TestGCR002_M168_LoginPageLocksOutAndSpeaksBothLanguages(t *testing.T) {
	w := loginWorld(t, func(c *Config) { c.Lockout = Lockout{Attempts: 3, PerSource: 100} })
	r, b := w.rp(), w.browser()
	id, zh, h := page(t, b, r.authURL(), "Accept-Language", "zh-CN,zh;q=0.9,en;q=0.5")
	if !strings.Contains(zh, `lang="zh-CN"`) || !strings.Contains(zh, "口令") || !strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("Chinese page %v %.600s", h, zh)
	}
	if _, en, _ := page(t, b, r.authURL(), "Accept-Language", "de"); !strings.Contains(en, "Password") {
		t.Errorf("other languages get English: %.600s", en)
	}
	for i := range 3 {
		resp, body := submit(t, b, id, "alice", fmt.Sprint("wrong password ", i))
		if resp.StatusCode != 401 || !strings.Contains(body, "YM-202") || strings.Contains(body, "wrong password") {
			t.Errorf("attempt %d: %d %.500s", i, resp.StatusCode, body)
		}
	}
	if resp, body := submit(t, b, id, "alice", password); resp.StatusCode != 429 || !strings.Contains(body, "YM-221") {
		t.Errorf("the right password after 3 wrong ones: %d %.500s", resp.StatusCode, body)
	}
	// The same account is locked out for agents, too.
	agent := w.enrol(NewDevice{Kind: "agent"})
	if status, _ := agent.login("USR00000001", password); status != 429 {
		t.Errorf("agent: %d", status)
	}
	// A name is shown as text, whatever is in it.
	if _, body := submit(t, b, id, `"><script>`, "x"); strings.Contains(body, "<script>") {
		t.Error("the name is not escaped")
	}
}

func TestS4_LockEndsLoginsInProgress(t *testing.T) {
	w := loginWorld(t)
	r, b := w.rp(), w.browser()
	code := r.code(t, b, "alice")
	w.do("POST", "/v1/locks", NewLock{Kind: "user", ID: "alice", Message: "请到安全部门"}, nil)
	if _, _, err := r.exchange(code); err == nil {
		t.Error("a code of before the lock was exchanged")
	}
	id, _, _ := page(t, b, r.authURL())
	if resp, body := submit(t, b, id, "alice", password); resp.StatusCode != 403 || !strings.Contains(body, "YM-219") || !strings.Contains(body, "请到安全部门") {
		t.Errorf("login of a locked user: %d %.400s", resp.StatusCode, body)
	}
	if _, body := submit(t, b, id, "alice", "a wrong password 1"); strings.Contains(body, "YM-219") || strings.Contains(body, "请到安全部门") {
		t.Error("a wrong password learns of the lock")
	}
}
