package login

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/yumen-zt/yumen/internal/reason"
)

// S29: no foreign page signs anybody out, in browsers that say Sec-Fetch-Site
// and in those that name only the form's origin.
func TestS29_ForeignPagesCannotSignOut(t *testing.T) {
	for name, c := range map[string]struct {
		header http.Header
		want   int
	}{
		"same origin":             {http.Header{"Sec-Fetch-Site": {"same-origin"}}, 303},
		"typed":                   {http.Header{"Sec-Fetch-Site": {"none"}}, 303},
		"a program":               {nil, 303},
		"older browser, own page": {http.Header{"Origin": {"https://app.example"}}, 303},
		"cross-site":              {http.Header{"Sec-Fetch-Site": {"cross-site"}}, 400},
		"sibling host":            {http.Header{"Sec-Fetch-Site": {"same-site"}}, 400},
		"older browser, foreign":  {http.Header{"Origin": {"https://evil.example"}}, 400},
		"older browser, sandbox":  {http.Header{"Origin": {"null"}}, 400},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			b := s.browser()
			b.signIn(t, "app.example", "/")
			b.header = c.header
			r := b.do("POST", "https://app.example/.yumen/logout")
			out := len(s.ended) == 1 && b.cookies["app.example"][cookieSession] == ""
			if r.StatusCode != c.want || out != (c.want == 303) {
				t.Errorf("status %d, signed out %v; want %d", r.StatusCode, out, c.want)
			}
		})
	}
}

// S29: the sign-out at the login host, too, is the user's own.
func TestS29_LeavingTheLoginHostTakesTheUsersOwnSignOut(t *testing.T) {
	s := newSite(t)
	victim, attacker := s.browser(), s.browser()
	victim.signIn(t, "app.example", "/")
	s.op.idToken = func(nonce string) string { return s.op.good(nonce, map[string]any{"sub": "another"}) }
	attacker.signIn(t, "app.example", "/")
	theirs := attacker.do("POST", "https://app.example/.yumen/logout").Header.Get("Location")
	for _, target := range []string{"https://login.example/.yumen/leave", "https://login.example/.yumen/leave?t=x", theirs} {
		r := victim.do("GET", target)
		if r.StatusCode != 200 || r.Header.Get("Location") != "" || victim.cookies["login.example"][cookieSite] == "" {
			t.Errorf("%s: status %d, location %q, site cookie %q; want to be asked", target, r.StatusCode, r.Header.Get("Location"), victim.cookies["login.example"][cookieSite])
		}
	}
	victim.header = http.Header{"Sec-Fetch-Site": {"cross-site"}}
	if r := victim.do("POST", "https://login.example/.yumen/leave"); r.StatusCode != 400 || victim.cookies["login.example"][cookieSite] == "" {
		t.Errorf("a foreign form: status %d", r.StatusCode)
	}
	victim.header = http.Header{"Sec-Fetch-Site": {"same-origin"}}
	if r := victim.do("POST", "https://login.example/.yumen/leave"); r.StatusCode != 303 || victim.cookies["login.example"][cookieSite] != "" {
		t.Errorf("his own answer: status %d", r.StatusCode)
	}
}

// A claim that a user may choose must not become a header of its own.
func TestUserIDHasNoCharacterOfHeadersOrPaths(t *testing.T) {
	for _, user := range []string{"a\r\nX: y", "a/b", "张三", "a b", "a;b"} {
		s := newSite(t)
		s.op.idToken = func(nonce string) string { return s.op.good(nonce, map[string]any{"sub": user}) }
		b := s.browser()
		b.signIn(t, "app.example", "/")
		if id, _, why := b.session("app.example"); why != reason.LoginRequired {
			t.Errorf("%q: session %q, %v", user, id, why)
		}
	}
}

func TestAReloadRemembersUsedCodes(t *testing.T) {
	s := newSite(t)
	b := s.browser()
	bind := ""
	r := b.do("GET", b.begin("app.example", "/", false))
	r = b.do("GET", s.op.authorize(r.Header.Get("Location")))
	enter := r.Header.Get("Location")
	bind = b.cookies["app.example"][cookieBinder]
	if r := b.do("GET", enter); r.StatusCode != 303 {
		t.Fatalf("first use: %d", r.StatusCode)
	}
	cfg := s.login.cfg
	cfg.Previous = s.login
	var err error
	if s.login, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	b.cookies["app.example"][cookieBinder] = bind
	if r := b.do("GET", enter); r.StatusCode == 303 {
		t.Error("the code served twice")
	}
}

func TestLoginHostIsCanonical(t *testing.T) {
	for host, want := range map[string]string{"Login.Example.": "login.example", "登录.example": "xn--w2t382c.example"} {
		s := newSite(t)
		cfg := s.login.cfg
		cfg.Host = host
		l, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if l.Host() != want {
			t.Errorf("%s: %s, want %s", host, l.Host(), want)
		}
	}
	for _, host := range []string{"", "https://login.example", "login.example:8443", "a b", "[::1]"} {
		c := Config{Host: host, Issuer: "https://idp.example", ClientID: "x"}
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "login.host") {
			t.Errorf("%q: %v", host, err)
		}
	}
}

func TestEmptyCookieKeyTellsTheRemedy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cookie.key")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSealer(file); err == nil || !strings.Contains(err.Error(), "remove it") {
		t.Errorf("%v", err)
	}
}
