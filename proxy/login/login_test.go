package login

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// op is an OpenID provider that says whatever a test wants.
type op struct {
	*httptest.Server
	ec  *ecdsa.PrivateKey
	rsa *rsa.PrivateKey

	mu        sync.Mutex
	idToken   func(nonce string) string // guarded by mu
	nonce     string                    // guarded by mu: of the newest authorization
	challenge string                    // guarded by mu
	used      map[string]bool           // guarded by mu
}

func newOP(t *testing.T) *op {
	t.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rk, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	o := &op{ec: ec, rsa: rk, used: map[string]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{
			"issuer": o.URL, "authorization_endpoint": o.URL + "/auth", "token_endpoint": o.URL + "/token", "jwks_uri": o.URL + "/keys",
			"id_token_signing_alg_values_supported": []string{"ES256", "RS256", "HS256", "none"}, "end_session_endpoint": o.URL + "/end",
		})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
			{Key: &ec.PublicKey, KeyID: "ec", Algorithm: "ES256", Use: "sig"}, {Key: &rk.PublicKey, KeyID: "rsa", Algorithm: "RS256", Use: "sig"},
		}})
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
		if base64.RawURLEncoding.EncodeToString(sum[:]) != o.challenge || o.used[r.FormValue("code")] {
			w.WriteHeader(400)
			w.Write([]byte(`{"error":"invalid_grant"}`))
			return
		}
		o.used[r.FormValue("code")] = true
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"access_token": "x", "token_type": "Bearer", "id_token": o.idToken(o.nonce)})
	})
	o.Server = httptest.NewTLSServer(mux)
	t.Cleanup(o.Close)
	return o
}

func (o *op) claims(nonce string, change map[string]any) map[string]any {
	now := time.Now().Unix()
	c := map[string]any{
		"iss": o.URL, "aud": "gate", "sub": "USR00000001", "iat": now, "exp": now + 300, "nonce": nonce,
		"auth_time": now - 5, "acr": "2", "amr": []string{"pwd", "otp"},
	}
	for k, v := range change {
		if v == nil {
			delete(c, k)
		} else {
			c[k] = v
		}
	}
	return c
}

// sign makes a compact JWT by hand, so that a test can forge any part.
func sign(header map[string]any, claims map[string]any, signer func(input []byte) []byte) string {
	h, _ := json.Marshal(header)
	c, _ := json.Marshal(claims)
	input := base64.RawURLEncoding.EncodeToString(h) + "." + base64.RawURLEncoding.EncodeToString(c)
	return input + "." + base64.RawURLEncoding.EncodeToString(signer([]byte(input)))
}

func es256(k *ecdsa.PrivateKey) func([]byte) []byte {
	return func(in []byte) []byte {
		sum := sha256.Sum256(in)
		r, s, _ := ecdsa.Sign(rand.Reader, k, sum[:])
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
}

func (o *op) good(nonce string, change map[string]any) string {
	return sign(map[string]any{"alg": "ES256", "kid": "ec"}, o.claims(nonce, change), es256(o.ec))
}

type site struct {
	op    *op
	login *Login
	now   time.Time
	ended []string
	audit []audit.Record
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{op: newOP(t), now: time.Now()}
	l, err := New(Config{
		Host: "login.example", Issuer: s.op.URL, ClientID: "gate", Map: "claim",
		CookieKeyFile: filepath.Join(t.TempDir(), "cookie.key"), Transport: s.op.Client().Transport,
		Application: func(name string) bool { return name == "app.example" || name == "b.example" },
		Ended:       func(sid string, _ time.Time) { s.ended = append(s.ended, sid) },
		Deny: func(w http.ResponseWriter, _ *http.Request, why reason.Reason, _ string) {
			w.WriteHeader(why.Status())
			fmt.Fprint(w, why.Code())
		},
		Audit: sinkFunc(func(r *audit.Record) { s.audit = append(s.audit, *r) }),
		Now:   func() time.Time { return s.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.login = l
	s.op.idToken = func(nonce string) string { return s.op.good(nonce, nil) }
	return s
}

type sinkFunc func(*audit.Record)

func (f sinkFunc) Write(r *audit.Record) { f(r) }

// browser keeps cookies per host, as a browser does with __Host- cookies.
type browser struct {
	s       *site
	cookies map[string]map[string]string
	header  http.Header // sent with every request
}

func (s *site) browser() *browser { return &browser{s: s, cookies: map[string]map[string]string{}} }

func (b *browser) do(method, target string) *http.Response {
	u, err := url.Parse(target)
	if err != nil {
		panic(err)
	}
	r := httptest.NewRequest(method, target, nil)
	r.Host = u.Host
	maps.Copy(r.Header, b.header)
	host, _ := splitAuthority(u.Host)
	for k, v := range b.cookies[host] {
		r.AddCookie(&http.Cookie{Name: k, Value: v})
	}
	w := httptest.NewRecorder()
	b.s.login.ServeHTTP(w, r)
	resp := w.Result()
	for _, c := range resp.Cookies() {
		if b.cookies[host] == nil {
			b.cookies[host] = map[string]string{}
		}
		if c.MaxAge < 0 {
			delete(b.cookies[host], c.Name)
		} else {
			b.cookies[host][c.Name] = c.Value
		}
	}
	return resp
}

// begin is what the proxy does for a browser without a session.
func (b *browser) begin(host, target string, fresh bool) string {
	name, _ := splitAuthority(host)
	var lines []string
	for k, v := range b.cookies[name] {
		lines = append(lines, k+"="+v)
	}
	bind, _ := b.s.login.Bind(lines)
	if b.cookies[name] == nil {
		b.cookies[name] = map[string]string{}
	}
	b.cookies[name][cookieBinder] = bind
	return b.s.login.StartURL(host, target, bind, fresh)
}

// authorize plays the provider's page: it takes the address of the redirect to
// it and returns the address that the browser comes back to.
func (o *op) authorize(to string) string {
	u, err := url.Parse(to)
	if err != nil || u.Path != "/auth" {
		panic("no redirect to the provider: " + to)
	}
	q := u.Query()
	o.mu.Lock()
	o.nonce, o.challenge = q.Get("nonce"), q.Get("code_challenge")
	o.mu.Unlock()
	if q.Get("code_challenge_method") != "S256" {
		panic("no PKCE")
	}
	return q.Get("redirect_uri") + "?" + url.Values{"code": {randomText(8)}, "state": {q.Get("state")}}.Encode()
}

func (b *browser) signIn(t *testing.T, host, target string) *http.Response {
	t.Helper()
	r := b.do("GET", b.begin(host, target, false))
	if r.StatusCode == 302 {
		r = b.do("GET", b.s.op.authorize(r.Header.Get("Location")))
	}
	if r.StatusCode != 303 {
		return r
	}
	return b.do("GET", r.Header.Get("Location"))
}

func (b *browser) session(host string) (id, user string, why reason.Reason) {
	name, _ := splitAuthority(host)
	var lines []string
	for k, v := range b.cookies[name] {
		lines = append(lines, k+"="+v)
	}
	f, why := b.s.login.Session(name, lines, b.s.now)
	return f.SessionID, f.UserID, why
}

func TestGCR002_M154_M157_M183_SignInOnceForTwoApplications(t *testing.T) {
	s := newSite(t)
	b := s.browser()
	r := b.signIn(t, "app.example:8443", "/page?x=1")
	if r.StatusCode != 303 || r.Header.Get("Location") != "/page?x=1" {
		t.Fatalf("sign-in ended with %d to %q", r.StatusCode, r.Header.Get("Location"))
	}
	id, user, why := b.session("app.example:8443")
	if why != reason.OK || user != "USR00000001" || len(id) != 12 {
		t.Fatalf("session %q of %q, %s", id, user, why)
	}
	f, _ := s.login.Session("app.example", []string{cookieSession + "=" + b.cookies["app.example"][cookieSession]}, s.now)
	if f.Level != 2 || f.Factors.String() != "1,4" || !f.Browser || s.now.Sub(f.AuthTime) > 10*time.Second {
		t.Errorf("facts %+v: level, factors and time come from acr, amr and auth_time", f)
	}
	// The second application asks nobody again, and it is the same session.
	before := len(s.op.used)
	if r := b.signIn(t, "b.example:8443", "/"); r.StatusCode != 303 {
		t.Fatalf("second application: %d", r.StatusCode)
	}
	if id2, _, why := b.session("b.example"); why != reason.OK || id2 != id || len(s.op.used) != before {
		t.Errorf("second application: session %q, %s, provider asked %d times more", id2, why, len(s.op.used)-before)
	}
	if len(s.audit) == 0 || s.audit[0].Kind != audit.Login || !s.audit[0].Allowed || s.audit[0].UserID != user {
		t.Errorf("audit %+v", s.audit)
	}
	if n := len(b.cookies["app.example"][cookieSession]); n > 100 {
		t.Errorf("the cookie has %d characters", n)
	}
}

func TestGCR002_M186_CookiesAreGuardedAndBound(t *testing.T) {
	s := newSite(t)
	b := s.browser()
	r := b.do("GET", b.begin("app.example", "/", false))
	r2 := b.do("GET", s.op.authorize(r.Header.Get("Location")))
	r3 := b.do("GET", r2.Header.Get("Location"))
	for _, resp := range []*http.Response{r, r2, r3} {
		for _, line := range resp.Header["Set-Cookie"] {
			for _, want := range []string{CookiePrefix, "Secure", "HttpOnly", "SameSite=Lax", "Path=/"} {
				if !strings.Contains(line, want) {
					t.Errorf("cookie %q lacks %s", line, want)
				}
			}
			if strings.Contains(line, "Domain") {
				t.Errorf("cookie %q names a domain", line)
			}
		}
	}
	cookie := b.cookies["app.example"][cookieSession]
	if _, why := s.login.Session("b.example", []string{cookieSession + "=" + cookie}, s.now); why != reason.CookieInvalid {
		t.Errorf("another application's host took the cookie: %s", why)
	}
	if _, why := s.login.Session("app.example", []string{cookieSession + "=" + b.cookies["login.example"][cookieSite]}, s.now); why != reason.CookieInvalid {
		t.Errorf("the site cookie passed as a session: %s", why)
	}
	if _, why := s.login.Session("app.example", []string{cookieSession + "=" + cookie + "; " + cookieSession + "=x"}, s.now); why != reason.CookieInvalid {
		t.Errorf("two sessions at once: %s", why)
	}
	for i := range cookie {
		forged := []byte(cookie)
		forged[i] ^= 1
		if _, why := s.login.Session("app.example", []string{cookieSession + "=" + string(forged)}, s.now); why == reason.OK {
			t.Errorf("character %d may be changed", i)
		}
	}
	s.now = s.now.Add(9 * time.Hour)
	if _, _, why := b.session("app.example"); why != reason.SessionExpired {
		t.Errorf("after the lifetime: %s", why)
	}
}

func TestGCR002_M119_M182_LogoutEndsTheSessionEverywhere(t *testing.T) {
	s := newSite(t)
	b := s.browser()
	b.signIn(t, "app.example", "/")
	id, _, _ := b.session("app.example")
	if r := b.do("GET", "https://app.example/.yumen/logout"); r.StatusCode != 200 || len(s.ended) != 0 {
		t.Fatalf("a mere GET answered %d and ended %v", r.StatusCode, s.ended)
	}
	r := b.do("POST", "https://app.example/.yumen/logout")
	if len(s.ended) != 1 || s.ended[0] != id {
		t.Fatalf("ended %v, want %s", s.ended, id)
	}
	r = b.do("GET", r.Header.Get("Location"))
	if !strings.HasPrefix(r.Header.Get("Location"), s.op.URL+"/end?") {
		t.Errorf("not sent to the provider's log-out: %q", r.Header.Get("Location"))
	}
	if len(b.cookies["login.example"]) != 0 || b.cookies["app.example"][cookieSession] != "" {
		t.Errorf("cookies are left: %v", b.cookies)
	}
}

// S28: whatever an ID token can be forged into is refused.
func TestS28_ForgedTokens(t *testing.T) {
	s := newSite(t)
	o := s.op
	other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	otherRSA, _ := rsa.GenerateKey(rand.Reader, 2048)
	ecPublic, _ := x509.MarshalPKIXPublicKey(&o.ec.PublicKey)
	rsaPublic, _ := x509.MarshalPKIXPublicKey(&o.rsa.PublicKey)
	hs := func(key []byte) func([]byte) []byte {
		return func(in []byte) []byte { m := hmac.New(sha256.New, key); m.Write(in); return m.Sum(nil) }
	}
	rs := func(k *rsa.PrivateKey) func([]byte) []byte {
		return func(in []byte) []byte {
			sum := sha256.Sum256(in)
			sig, _ := rsa.SignPKCS1v15(nil, k, crypto.SHA256, sum[:])
			return sig
		}
	}
	none := func([]byte) []byte { return nil }
	jwk, _ := json.Marshal(jose.JSONWebKey{Key: &other.PublicKey, KeyID: "ec"})
	header := func(kv ...any) map[string]any {
		h := map[string]any{"alg": "ES256", "kid": "ec"}
		for i := 0; i < len(kv); i += 2 {
			h[kv[i].(string)] = kv[i+1]
		}
		return h
	}
	now := time.Now().Unix()
	forged := map[string]func(nonce string) string{
		"alg none":             func(n string) string { return sign(map[string]any{"alg": "none"}, o.claims(n, nil), none) },
		"alg None":             func(n string) string { return sign(map[string]any{"alg": "None"}, o.claims(n, nil), none) },
		"alg none with kid":    func(n string) string { return sign(header("alg", "none"), o.claims(n, nil), none) },
		"HS256, EC public key": func(n string) string { return sign(header("alg", "HS256"), o.claims(n, nil), hs(ecPublic)) },
		"HS256, RSA public key": func(n string) string {
			return sign(header("alg", "HS256", "kid", "rsa"), o.claims(n, nil), hs(rsaPublic))
		},
		"HS256, empty key": func(n string) string { return sign(header("alg", "HS256"), o.claims(n, nil), hs(nil)) },
		"HS256, client id": func(n string) string { return sign(header("alg", "HS256"), o.claims(n, nil), hs([]byte("gate"))) },
		"foreign EC key":   func(n string) string { return sign(header(), o.claims(n, nil), es256(other)) },
		"foreign RSA key": func(n string) string {
			return sign(header("alg", "RS256", "kid", "rsa"), o.claims(n, nil), rs(otherRSA))
		},
		"key in the header": func(n string) string {
			return sign(header("jwk", json.RawMessage(jwk)), o.claims(n, nil), es256(other))
		},
		"jku": func(n string) string {
			return sign(header("jku", "https://evil.example/keys"), o.claims(n, nil), es256(other))
		},
		"x5u": func(n string) string {
			return sign(header("x5u", "https://evil.example/c"), o.claims(n, nil), es256(other))
		},
		"kid is a path": func(n string) string {
			return sign(header("kid", "../../../../dev/null"), o.claims(n, nil), es256(other))
		},
		"kid is an address": func(n string) string {
			return sign(header("kid", "https://evil.example"), o.claims(n, nil), es256(other))
		},
		"RS256 with the EC kid":  func(n string) string { return sign(header("alg", "RS256"), o.claims(n, nil), rs(otherRSA)) },
		"other issuer":           func(n string) string { return o.good(n, map[string]any{"iss": "https://evil.example"}) },
		"issuer with a slash":    func(n string) string { return o.good(n, map[string]any{"iss": o.URL + "/"}) },
		"no issuer":              func(n string) string { return o.good(n, map[string]any{"iss": nil}) },
		"other audience":         func(n string) string { return o.good(n, map[string]any{"aud": "other"}) },
		"no audience":            func(n string) string { return o.good(n, map[string]any{"aud": nil}) },
		"two audiences, no azp":  func(n string) string { return o.good(n, map[string]any{"aud": []string{"gate", "other"}}) },
		"azp is another":         func(n string) string { return o.good(n, map[string]any{"azp": "other"}) },
		"nonce of another login": func(n string) string { return o.good(randomText(16), nil) },
		"no nonce":               func(n string) string { return o.good(n, map[string]any{"nonce": nil}) },
		"empty nonce":            func(n string) string { return o.good(n, map[string]any{"nonce": ""}) },
		"expired":                func(n string) string { return o.good(n, map[string]any{"exp": now - 1, "iat": now - 300}) },
		"no expiry":              func(n string) string { return o.good(n, map[string]any{"exp": nil}) },
		"issued tomorrow":        func(n string) string { return o.good(n, map[string]any{"iat": now + 86400, "exp": now + 90000}) },
		"signed in tomorrow":     func(n string) string { return o.good(n, map[string]any{"auth_time": now + 86400}) },
		"not yet valid":          func(n string) string { return o.good(n, map[string]any{"nbf": now + 86400}) },
		"no subject":             func(n string) string { return o.good(n, map[string]any{"sub": nil}) },
		"subject is a number":    func(n string) string { return o.good(n, map[string]any{"sub": 7}) },
		"subject too long":       func(n string) string { return o.good(n, map[string]any{"sub": strings.Repeat("U", 12)}) },
		"changed claims": func(n string) string {
			return swapClaims(o.good(n, nil), o.claims(n, map[string]any{"sub": "USR00000002"}))
		},
		"signature cut off": func(n string) string { tok := o.good(n, nil); return tok[:strings.LastIndexByte(tok, '.')+1] },
		"two parts":         func(n string) string { tok := o.good(n, nil); return tok[:strings.LastIndexByte(tok, '.')] },
		"not a token":       func(string) string { return "id_token" },
	}
	if len(forged) < 25 {
		t.Fatalf("%d forgeries, at least 25", len(forged))
	}
	for name, token := range forged {
		t.Run(name, func(t *testing.T) {
			o.mu.Lock()
			o.idToken = token
			o.mu.Unlock()
			b := s.browser()
			r := b.signIn(t, "app.example", "/")
			if _, user, why := b.session("app.example"); why == reason.OK || r.StatusCode < 400 {
				t.Errorf("signed in as %q with status %d", user, r.StatusCode)
			}
		})
	}
	o.mu.Lock()
	o.idToken = func(n string) string { return sign(header("alg", "RS256", "kid", "rsa"), o.claims(n, nil), rs(o.rsa)) }
	o.mu.Unlock()
	if r := s.browser().signIn(t, "app.example", "/"); r.StatusCode != 303 {
		t.Errorf("a good RS256 token was refused: %d", r.StatusCode)
	}
}

func swapClaims(token string, claims map[string]any) string {
	parts := strings.Split(token, ".")
	c, _ := json.Marshal(claims)
	parts[1] = base64.RawURLEncoding.EncodeToString(c)
	return strings.Join(parts, ".")
}

// S29: nobody can be signed in by somebody else's answer.
func TestS29_LoginCannotBeFixedOrReplayed(t *testing.T) {
	s := newSite(t)
	attacker, victim := s.browser(), s.browser()

	r := attacker.do("GET", attacker.begin("app.example", "/", false))
	back := s.op.authorize(r.Header.Get("Location"))
	if r := victim.do("GET", back); r.StatusCode < 400 {
		t.Errorf("the attacker's callback worked in the victim's browser: %d", r.StatusCode)
	}
	r = attacker.do("GET", back)
	enter := r.Header.Get("Location")
	victim.begin("app.example", "/", false)
	if r := victim.do("GET", enter); r.StatusCode < 400 {
		t.Errorf("the attacker's hand-over code worked in the victim's browser: %d", r.StatusCode)
	}
	cross := strings.Replace(enter, "app.example", "b.example", 1)
	attacker.cookies["b.example"] = attacker.cookies["app.example"]
	if r := attacker.do("GET", cross); r.StatusCode < 400 {
		t.Errorf("the code worked on another host: %d", r.StatusCode)
	}
	bind := attacker.cookies["app.example"][cookieBinder]
	if r := attacker.do("GET", enter); r.StatusCode != 303 {
		t.Fatalf("the code did not work where it should: %d", r.StatusCode)
	}
	attacker.cookies["app.example"][cookieBinder] = bind
	if r := attacker.do("GET", enter); r.StatusCode < 400 {
		t.Errorf("the code worked twice: %d", r.StatusCode)
	}
	if r := attacker.do("GET", back); r.StatusCode < 400 {
		t.Errorf("the callback worked twice: %d", r.StatusCode)
	}
	// A wrong or missing state, and a state that is too old.
	for name, change := range map[string]func(url.Values){
		"wrong state":  func(q url.Values) { q.Set("state", randomText(16)) },
		"no state":     func(q url.Values) { q.Del("state") },
		"other issuer": func(q url.Values) { q.Set("iss", "https://evil.example") },
		"no code":      func(q url.Values) { q.Del("code") },
		"refused":      func(q url.Values) { q.Set("error", "access_denied") },
	} {
		b := s.browser()
		r := b.do("GET", b.begin("app.example", "/", false))
		u, _ := url.Parse(s.op.authorize(r.Header.Get("Location")))
		q := u.Query()
		change(q)
		u.RawQuery = q.Encode()
		if r := b.do("GET", u.String()); r.StatusCode < 400 {
			t.Errorf("%s: %d", name, r.StatusCode)
		}
	}
	b := s.browser()
	r = b.do("GET", b.begin("app.example", "/", false))
	back = s.op.authorize(r.Header.Get("Location"))
	s.now = s.now.Add(11 * time.Minute)
	if r := b.do("GET", back); r.StatusCode < 400 {
		t.Errorf("a state of 11 minutes: %d", r.StatusCode)
	}
}

// A browser's chain of redirects from the provider's form must end at the login
// host: the form's page may forbid it to go on to an application.
func TestBrowserLeavesTheFormChainAtTheLoginHost(t *testing.T) {
	s := newSite(t)
	b := s.browser()
	r := b.do("GET", b.begin("app.example:8443", "/page", false))
	b.header = http.Header{"Sec-Fetch-Mode": {"navigate"}}
	r = b.do("GET", s.op.authorize(r.Header.Get("Location")))
	to, ok := strings.CutPrefix(r.Header.Get("Refresh"), "0; url=")
	if r.StatusCode != 200 || r.Header.Get("Location") != "" || !ok {
		t.Fatalf("status %d, location %q, refresh %q; want a page that leads on by itself", r.StatusCode, r.Header.Get("Location"), r.Header.Get("Refresh"))
	}
	if r := b.do("GET", to); r.StatusCode != 303 || r.Header.Get("Location") != "/page" {
		t.Errorf("then %d to %q", r.StatusCode, r.Header.Get("Location"))
	}
	if _, _, why := b.session("app.example:8443"); why != reason.OK {
		t.Errorf("session %s", why)
	}
}

func TestLoginIDChangesWithEachSignIn(t *testing.T) {
	s := newSite(t)
	b := s.browser()
	b.signIn(t, "app.example", "/")
	first, _, _ := b.session("app.example")
	r := b.do("GET", b.begin("app.example", "/", true))
	if to := r.Header.Get("Location"); !strings.Contains(to, "prompt=login") {
		t.Fatalf("a fresh sign-in does not ask for a new proof: %q", to)
	}
	r = b.do("GET", s.op.authorize(r.Header.Get("Location")))
	b.do("GET", r.Header.Get("Location"))
	if second, _, why := b.session("app.example"); why != reason.OK || second == first {
		t.Errorf("session %q after %q, %s", second, first, why)
	}
}

// S30: the way back is a path on the same host, whatever was asked for.
func TestS30_OpenRedirects(t *testing.T) {
	for _, evil := range []string{
		"//evil.example", `\\evil.example`, `/\evil.example`, "https://evil.example", "https:evil.example", "///evil.example",
		"/%09/evil.example\t", "/\t/evil.example", "/\r\nLocation: https://evil.example", "@evil.example", "/\u2028", "javascript:alert(1)",
		"/.yumen/logout", "", "evil.example", "/%5cevil.example", "/ /evil.example", "/" + strings.Repeat("a", 3000),
	} {
		if got := safeReturn(evil); got != "/" {
			if u, err := url.Parse(got); err != nil || u.Host != "" || strings.HasPrefix(got, "//") || strings.ContainsAny(got, "\\\r\n\t ") || strings.Contains(u.Path, "\\") {
				t.Errorf("safeReturn(%q) = %q", evil, got)
			}
		}
	}
	for _, good := range []string{"/", "/page", "/a/b?x=1&y=%2F", "/@user"} {
		if got := safeReturn(good); got != good {
			t.Errorf("safeReturn(%q) = %q", good, got)
		}
	}
	s := newSite(t)
	b := s.browser()
	if r := b.signIn(t, "app.example", "//evil.example/"); r.Header.Get("Location") != "/" {
		t.Errorf("sent to %q", r.Header.Get("Location"))
	}
	// The hand-over goes to registered applications only.
	if r := b.do("GET", "https://login.example/.yumen/start?h=evil.example&rd=/&b="+strings.Repeat("b", 43)); r.StatusCode != 400 {
		t.Errorf("a foreign host got %d", r.StatusCode)
	}
}

func TestProviderAbsentAtStartIsFoundLater(t *testing.T) {
	s := newSite(t)
	transport := s.login.provider.client.Transport
	s.login.provider.client.Transport = roundTripper(func(*http.Request) (*http.Response, error) { return nil, context.DeadlineExceeded })
	b := s.browser()
	if r := b.do("GET", b.begin("app.example", "/", false)); r.StatusCode != reason.UpstreamUnreachable.Status() {
		t.Fatalf("without a provider: %d", r.StatusCode)
	}
	s.login.provider.client.Transport = transport
	s.now = s.now.Add(providerRetry)
	if r := b.signIn(t, "app.example", "/"); r.StatusCode != 303 {
		t.Errorf("with the provider back: %d", r.StatusCode)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestCookieKeyRotatesAndIsPrivate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sub", "cookie.key")
	a, err := LoadSealer(file)
	if err != nil {
		t.Fatal(err)
	}
	text := a.seal(forSession, "h", []byte("x"))
	b, err := LoadSealer(file) // the second gateway of the site
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.open(forSession, "h", text); err != nil || !bytes.Equal(got, []byte("x")) {
		t.Errorf("the same key file does not open: %v", err)
	}
	newer, err := NewSealer(bytes.Repeat([]byte{7}, 16))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newer.open(forSession, "h", text); err == nil {
		t.Error("another key opens")
	}
	both := &Sealer{keys: append(newer.keys, a.keys...)}
	if _, err := both.open(forSession, "h", text); err != nil {
		t.Error("the older key of two does not open")
	}
	if err := chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSealer(file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key file that others read: %v", err)
	}
}

func FuzzOpenSealed(f *testing.F) {
	s, err := NewSealer(make([]byte, 16))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.seal(forSession, "app.example", (&session{id: newSessionID(), user: "USR00000001"}).marshal()))
	f.Add("AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		b, err := s.open(forSession, "other.example", text)
		if err == nil {
			t.Fatalf("opened %q", b)
		}
	})
}

func FuzzSafeReturn(f *testing.F) {
	f.Add("//evil.example")
	f.Add("/a?b=c#d")
	f.Fuzz(func(t *testing.T, target string) {
		got := safeReturn(target)
		base, _ := url.Parse("https://app.example/x")
		u, err := base.Parse(got)
		if err != nil || u.Host != "app.example" || u.Scheme != "https" || strings.HasPrefix(got, "//") || strings.Contains(got, "\\") {
			t.Fatalf("safeReturn(%q) = %q leads to %v", target, got, u)
		}
	})
}

func chmod(file string, mode os.FileMode) error { return os.Chmod(file, mode) }

func TestProviderThatNeverStopsTalkingIsCutOff(t *testing.T) {
	s := newSite(t)
	talk := &endless{}
	s.login.provider.client.Transport = bounded{roundTripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(talk)}, nil
	})}
	b := s.browser()
	if r := b.do("GET", b.begin("app.example", "/", false)); r.StatusCode != reason.UpstreamUnreachable.Status() {
		t.Fatalf("status %d", r.StatusCode)
	}
	if talk.n > maxAnswer+64<<10 {
		t.Errorf("read %d bytes, at most %d", talk.n, maxAnswer)
	}
}

// endless is a JSON text without end.
type endless struct{ n int }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	e.n += len(p)
	return len(p), nil
}
