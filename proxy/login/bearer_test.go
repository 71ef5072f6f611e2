package login

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

const audience = "https://api.example"

// api is a site that takes access tokens.
func api(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.login.cfg.APIAudiences = []string{audience}
	return s
}

func (s *site) access(change map[string]any) string {
	c := map[string]any{"aud": audience, "nonce": nil, "client_id": "robot"}
	for k, v := range change {
		c[k] = v
	}
	return s.op.good("", c)
}

func TestS28_AccessTokensThatAreNotGood(t *testing.T) {
	s := api(t)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := s.now.Unix()
	cert := &x509.Certificate{Raw: []byte("a certificate")}
	sum := sha256.Sum256(cert.Raw)
	thumb := base64.RawURLEncoding.EncodeToString(sum[:])
	claims := func(change map[string]any) map[string]any {
		c := map[string]any{"aud": audience, "nonce": nil}
		for k, v := range change {
			c[k] = v
		}
		return s.op.claims("", c)
	}
	pub, _ := x509.MarshalPKIXPublicKey(&s.op.ec.PublicKey)
	hs := func(in []byte) []byte { m := hmac.New(sha256.New, pub); m.Write(in); return m.Sum(nil) }
	good := s.access(nil)
	parts := strings.Split(good, ".")
	for name, c := range map[string]struct {
		token string
		peer  *x509.Certificate
		want  reason.Reason
	}{
		"good":                  {good, nil, reason.OK},
		"one of two audiences":  {s.access(map[string]any{"aud": []string{"x", audience}}), nil, reason.OK},
		"bound, and shown":      {s.access(map[string]any{"cnf": map[string]any{"x5t#S256": thumb}}), cert, reason.OK},
		"bound, and not shown":  {s.access(map[string]any{"cnf": map[string]any{"x5t#S256": thumb}}), nil, reason.BearerInvalid},
		"bound to another":      {s.access(map[string]any{"cnf": map[string]any{"x5t#S256": thumb}}), &x509.Certificate{Raw: []byte("b")}, reason.BearerInvalid},
		"bound to a key":        {s.access(map[string]any{"cnf": map[string]any{"jkt": thumb}}), cert, reason.BearerInvalid},
		"expired":               {s.access(map[string]any{"iat": now - 600, "exp": now - 1}), nil, reason.SessionExpired},
		"no end":                {s.access(map[string]any{"exp": nil}), nil, reason.SessionExpired},
		"not yet":               {s.access(map[string]any{"nbf": now + 3600}), nil, reason.BearerInvalid},
		"from the future":       {s.access(map[string]any{"iat": now + 600, "exp": now + 900}), nil, reason.BearerInvalid},
		"no beginning":          {s.access(map[string]any{"iat": nil}), nil, reason.BearerInvalid},
		"too long":              {s.access(map[string]any{"exp": now + 100*3600}), nil, reason.BearerInvalid},
		"another audience":      {s.access(map[string]any{"aud": "https://other.example"}), nil, reason.BearerInvalid},
		"no audience":           {s.access(map[string]any{"aud": nil}), nil, reason.BearerInvalid},
		"an ID token":           {s.op.good("n", nil), nil, reason.BearerInvalid},
		"an ID token for us":    {s.op.good("n", map[string]any{"aud": audience}), nil, reason.BearerInvalid},
		"another issuer":        {s.access(map[string]any{"iss": "https://other.example"}), nil, reason.BearerInvalid},
		"no subject":            {s.access(map[string]any{"sub": nil}), nil, reason.BearerInvalid},
		"a subject that is odd": {s.access(map[string]any{"sub": "a user\r\nX: y"}), nil, reason.SubjectUnmapped},
		"alg none":              {sign(map[string]any{"alg": "none", "kid": "ec"}, claims(nil), func([]byte) []byte { return nil }), nil, reason.BearerInvalid},
		"HS256 by public key":   {sign(map[string]any{"alg": "HS256", "kid": "ec"}, claims(nil), hs), nil, reason.BearerInvalid},
		"another key":           {sign(map[string]any{"alg": "ES256", "kid": "ec"}, claims(nil), es256(other)), nil, reason.BearerInvalid},
		"an unknown kid":        {sign(map[string]any{"alg": "ES256", "kid": "../../x"}, claims(nil), es256(other)), nil, reason.BearerInvalid},
		"its own key":           {sign(map[string]any{"alg": "ES256", "jwk": map[string]any{"kty": "EC"}}, claims(nil), es256(other)), nil, reason.BearerInvalid},
		"key by URL":            {sign(map[string]any{"alg": "ES256", "kid": "z", "jku": s.op.URL + "/evil"}, claims(nil), es256(other)), nil, reason.BearerInvalid},
		"alg of another key":    {sign(map[string]any{"alg": "ES256", "kid": "rsa"}, claims(nil), es256(s.op.ec)), nil, reason.BearerInvalid},
		"changed":               {parts[0] + "." + parts[1][:len(parts[1])-2] + "AA." + parts[2], nil, reason.BearerInvalid},
		"no signature":          {parts[0] + "." + parts[1] + ".", nil, reason.BearerInvalid},
		"two parts":             {parts[0] + "." + parts[1], nil, reason.BearerInvalid},
		"empty":                 {"", nil, reason.BearerInvalid},
		"too large":             {s.access(map[string]any{"x": strings.Repeat("x", maxToken)}), nil, reason.BearerInvalid},
	} {
		f, why, err := s.login.Bearer(t.Context(), c.token, c.peer)
		if why != c.want {
			t.Errorf("%s: %s (%v), want %s", name, why, err, c.want)
		}
		if why == reason.OK && (f.UserID != "USR00000001" || f.Level != 2 || !f.Browser || f.SessionID == "" || f.Expires.Unix() != now+300) {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestAnAccessTokenEndsAlsoWhenItIsRemembered(t *testing.T) {
	s := api(t)
	token := s.access(nil)
	if _, why, err := s.login.Bearer(t.Context(), token, nil); why != reason.OK {
		t.Fatal(why, err)
	}
	s.now = s.now.Add(299 * time.Second)
	if _, why, err := s.login.Bearer(t.Context(), token, nil); why != reason.OK {
		t.Error(why, err)
	}
	s.now = s.now.Add(time.Second)
	if _, why, _ := s.login.Bearer(t.Context(), token, nil); why != reason.SessionExpired {
		t.Errorf("%s at its end", why)
	}
}

func TestS28_UnknownKeysDoNotMakeUsAskTheProviderAgainAndAgain(t *testing.T) {
	s := api(t)
	var asked atomic.Int64
	next := s.login.provider.client.Transport
	s.login.provider.client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.URL.Path == "/keys" {
			asked.Add(1)
		}
		return next.RoundTrip(r)
	})
	other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	for i := range 50 {
		token := sign(map[string]any{"alg": "ES256", "kid": strings.Repeat("k", i+1)}, s.op.claims("", map[string]any{"aud": audience}), es256(other))
		if _, why, _ := s.login.Bearer(t.Context(), token, nil); why != reason.BearerInvalid {
			t.Fatal(why)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked for keys %d times", n)
	}
	if _, why, err := s.login.Bearer(t.Context(), s.access(nil), nil); why != reason.OK {
		t.Error(why, err)
	}
	// Keys that are old are asked for again, and count while nobody answers.
	s.now = s.now.Add(keysLife + time.Second)
	s.login.provider.client.Transport = roundTripper(func(*http.Request) (*http.Response, error) { return nil, context.DeadlineExceeded })
	now := s.now.Unix()
	if _, why, err := s.login.Bearer(t.Context(), s.access(map[string]any{"iat": now, "exp": now + 60}), nil); why != reason.OK {
		t.Error(why, err)
	}
}
