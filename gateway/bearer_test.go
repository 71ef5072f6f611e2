package gateway

import (
	"bufio"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// token is an access token of p for a user, which lives for life.
func (p *provider) token(t *testing.T, user string, life time.Duration, change map[string]any) string {
	t.Helper()
	now := time.Now()
	c := map[string]any{"iss": p.URL, "aud": "api", "sub": user, "iat": now.Add(-time.Second).Unix(), "exp": now.Add(life).Unix()}
	for k, v := range change {
		c[k] = v
	}
	claims, err := json.Marshal(c)
	must(t, err)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: p.key, KeyID: "1"}}, (&jose.SignerOptions{}).WithType("at+jwt"))
	must(t, err)
	sig, err := s.Sign(claims)
	must(t, err)
	token, err := sig.CompactSerialize()
	must(t, err)
	return token
}

// programs is a world whose issuer's access tokens are taken.
func programs(t *testing.T) (*world, *provider) {
	w := newWorld(t)
	p := newProvider(t)
	w.write("idp.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})), 0o600)
	w.config(strings.Replace(twoApps, "hosts: [one.test]", "hosts: [one.test]\n    cors_origins: ['https://portal.test']\n    public_paths: ['/open/*']", 1) +
		"login: {host: login.test, issuer: '" + p.URL + "', client_id: gate, map: claim, ca_file: idp.pem, api_audiences: [api]}\n")
	w.lists(1, 1, user+" "+dev+" "+app1, user+" BROWSER0000 "+app1)
	w.start()
	return w, p
}

// ask sends a request with these fields ("Name: value").
func (w *world) ask(c *http.Client, method, target string, fields ...string) (*http.Response, string) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, target, nil)
	must(w.t, err)
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		r.Header.Add(name, value)
	}
	res, err := c.Do(r)
	must(w.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must(w.t, err)
	return res, string(b)
}

func TestProgramsByAccessToken(t *testing.T) {
	w, p := programs(t)
	c := w.client(nil)
	const one = "https://one.test/"
	good := "Authorization: Bearer " + p.token(t, user, time.Minute, nil)
	if res, b := w.ask(c, "GET", one, good); res.StatusCode != 200 || b != "one.test for "+user {
		t.Errorf("by token: %d %s", res.StatusCode, b)
	}
	for name, x := range map[string]struct {
		target, field string
		status        int
		code, says    string
	}{
		"nothing":          {one, "X-Nothing: y", 401, "YM-201", `Bearer realm="yumen"`},
		"junk":             {one, "Authorization: Bearer junk", 401, "YM-223", `error="invalid_token"`},
		"another audience": {one, "Authorization: Bearer " + p.token(t, user, time.Minute, map[string]any{"aud": "gate"}), 401, "YM-223", `error="invalid_token"`},
		"expired":          {one, "Authorization: Bearer " + p.token(t, user, -time.Second, nil), 401, "YM-203", `error="invalid_token"`},
		"without a grant":  {"https://two.test/", good, 403, "YM-303", ""},
		"another user":     {one, "Authorization: Bearer " + p.token(t, "USR00000009", time.Minute, nil), 403, "YM-301", ""},
		"another scheme":   {one, "Authorization: Basic dTpw", 401, "YM-201", `Bearer realm="yumen"`},
	} {
		res, b := w.ask(c, "GET", x.target, x.field)
		if res.StatusCode != x.status || !strings.Contains(b, x.code) || !strings.Contains(res.Header.Get("WWW-Authenticate"), x.says) || !strings.HasPrefix(res.Header.Get("Content-Type"), "application/json") {
			t.Errorf("%s: %d %s %v", name, res.StatusCode, b, res.Header)
		}
	}
	res, b := w.ask(c, "GET", one, good, good)
	if res.StatusCode != 401 {
		t.Errorf("two tokens: %d %s", res.StatusCode, b)
	}
	// A device adds what it is; the token alone is the browser class.
	device := w.client(w.certificate("urn:yumen:device:" + dev))
	if res, b := w.ask(device, "GET", one, good); res.StatusCode != 200 {
		t.Errorf("with a device: %d %s", res.StatusCode, b)
	}
	if res, b := w.ask(c, "GET", one+"authorization", good); res.StatusCode != 200 || b != "" {
		t.Errorf("the token went on to the application: %d %s", res.StatusCode, b)
	}
}

// What flows ends with the token that opened it.
func TestS2_ATokenEndsWhatFlows(t *testing.T) {
	w, p := programs(t)
	const life = 3 * time.Second
	end := time.Now().Add(life)
	r, err := http.NewRequestWithContext(t.Context(), "GET", "https://one.test/big", nil)
	must(t, err)
	r.Header.Set("Authorization", "Bearer "+p.token(t, user, life, nil))
	res, err := w.client(nil).Do(r)
	must(t, err)
	defer res.Body.Close()
	if res.StatusCode != 200 {
		t.Fatalf("status %d", res.StatusCode)
	}
	<-w.big
	_, err = io.Copy(io.Discard, bufio.NewReader(res.Body))
	late := time.Since(end)
	t.Logf("cut %v after the token's end: %v", late, err)
	if err == nil || errors.Is(err, io.EOF) || late < -1100*time.Millisecond || late > 3*time.Second { // exp has whole seconds
		t.Errorf("ended %v after the token, %v", late, err)
	}
}

func TestPagesOfOtherOriginsMayAsk(t *testing.T) {
	w, _ := programs(t)
	c := w.client(nil)
	const one, portal = "https://one.test/api", "Origin: https://portal.test"
	ask := "Access-Control-Request-Method: POST"
	for name, x := range map[string]struct {
		method string
		fields []string
		status int
	}{
		"preflight":                    {"OPTIONS", []string{portal, ask}, 200},
		"preflight of another page":    {"OPTIONS", []string{"Origin: https://evil.test", ask}, 401},
		"OPTIONS that is no preflight": {"OPTIONS", []string{portal}, 401},
		"the request itself":           {"POST", []string{portal, ask, "Sec-Fetch-Mode: cors"}, 401},
	} {
		res, b := w.ask(c, x.method, one, x.fields...)
		if res.StatusCode != x.status {
			t.Errorf("%s: %d %s", name, res.StatusCode, b)
		}
		if x.status == 200 && b != "one.test for " {
			t.Errorf("%s: an identity went with it: %s", name, b)
		}
		want := ""
		if x.status == 401 && x.fields[0] == portal {
			want = "https://portal.test"
		}
		if got := res.Header.Get("Access-Control-Allow-Origin"); x.status == 401 && got != want {
			t.Errorf("%s: readable by %q, want %q", name, got, want)
		}
	}
	if res, _ := w.ask(c, "OPTIONS", "https://two.test/", portal, ask); res.StatusCode != 401 {
		t.Errorf("another application: %d", res.StatusCode)
	}
	// Public paths, and what explains them.
	w.want(c, "https://one.test/open/door", 200, "one.test for ")
	var e ExplainReply
	must(t, w.admin("POST", "/explain", ExplainRequest{AppID: app1, Path: "/open/door"}, &e))
	if !e.Allowed || !strings.Contains(e.Trace, "open to everybody") {
		t.Errorf("%+v", e)
	}
	must(t, w.stop())
	audit := w.auditText()
	for _, want := range []string{`"detail":"CORS preflight"`, `"detail":"public path"`} {
		if !strings.Contains(audit, want) {
			t.Errorf("no %s in the audit", want)
		}
	}
}

func (w *world) read(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, name))
	must(w.t, err)
	return string(b)
}
