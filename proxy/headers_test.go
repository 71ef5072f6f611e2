package proxy

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// upstreamOf returns a server of f, closed with the test.
func upstreamOf(t *testing.T, f http.HandlerFunc) string {
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s.URL
}

// echoHeader answers with the fields that it got, as JSON.
func echoHeader(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	h := map[string][]string(r.Header)
	h["Host"] = []string{r.Host}
	h[":target"] = []string{r.RequestURI}
	for k, v := range r.Trailer {
		h["trailer:"+k] = v
	}
	_ = json.NewEncoder(w).Encode(h)
}

func headersOf(t *testing.T, body string) map[string][]string {
	t.Helper()
	var h map[string][]string
	if err := json.Unmarshal([]byte(body), &h); err != nil {
		t.Fatalf("%v: %q", err, body)
	}
	return h
}

var protocols = []string{"http/1.1", "h2"}

func TestS7_M153_SpoofedIdentityNeverArrives(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader))
	want := map[string]string{
		"X-Yumen-User": "USR00000001", "X-Yumen-Device": "DEV00000001", "X-Yumen-App": "APP00000001", "X-Yumen-Session": "s1", "X-Yumen-Level": "2",
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": host,
	}
	spoofs := []string{"X-Yumen-User", "X-Yumen-Device", "X-Yumen-App", "X-Yumen-Session", "X-Yumen-Level", "X-Yumen-Assertion", "X-Yumen-Other",
		"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-User", "X-Forwarded-Prefix", "Forwarded", "X-Real-Ip",
		"X-Zt-User", "X-Request-Id", "X-Original-Url", "X-Rewrite-Url", "X-Http-Method-Override", "Client-Ip", "True-Client-Ip", "Remote-User", "Proxy"}
	for _, proto := range protocols {
		c := f.client(proto)
		for _, name := range spoofs {
			for _, spelled := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
				h := http.Header{spelled: {"evil", "evil"}}
				res, body := do(t, c, "GET", "https://"+host+"/", h, nil)
				if res.StatusCode != 200 {
					t.Fatalf("%s %s: %d %s", proto, spelled, res.StatusCode, body)
				}
				if strings.Contains(body, "evil") {
					t.Errorf("%s: %s arrived: %s", proto, spelled, body)
				}
				got := headersOf(t, body)
				for k, v := range want {
					if !slices.Equal(got[k], []string{v}) {
						t.Errorf("%s: with spoofed %s: %s = %q, want one %q", proto, spelled, k, got[k], v)
					}
				}
				if id := res.Header.Get("X-Request-Id"); id == "" || !slices.Equal(got["X-Request-Id"], []string{id}) {
					t.Errorf("%s: request id %q at the client, %q at the upstream", proto, id, got["X-Request-Id"])
				}
			}
		}
		for _, name := range []string{"X_Yumen_User", "X-Yumen_User", "x_forwarded_for", "X.Yumen.User", "X!Yumen!User"} {
			res, body := do(t, c, "GET", "https://"+host+"/", http.Header{name: {"evil"}}, nil)
			if res.StatusCode != 400 {
				t.Errorf("%s: field name %q: %d %s, want 400", proto, name, res.StatusCode, body)
			}
		}
	}
}

func TestS7_SpoofedTrailersNeverArrive(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader))
	for _, proto := range protocols {
		ctx := t.Context()
		r, _ := http.NewRequestWithContext(ctx, "POST", "https://"+host+"/", io.MultiReader(strings.NewReader("body")))
		r.Trailer = http.Header{"X-Sum": {"good"}, "X-Yumen-User": {"evil"}, "X-Forwarded-For": {"evil"}, "X_sum": {"evil"}}
		res, err := f.client(proto).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if strings.Contains(string(b), "evil") || !slices.Equal(headersOf(t, string(b))["trailer:X-Sum"], []string{"good"}) {
			t.Errorf("%s: %s", proto, b)
		}
	}
}

func TestS8_ConnectionCannotStripIdentity(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader))
	status, _, body := f.exchange(host, "GET / HTTP/1.1\r\nHost: "+host+"\r\nX-Mine: 1\r\n"+
		"Connection: close, X-Yumen-User, x-yumen-assertion, X-Forwarded-For, X-Mine\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy-Connection: x\r\n\r\n", false)
	if status != 200 {
		t.Fatalf("status %d", status)
	}
	h := headersOf(t, body)
	for _, k := range []string{"X-Yumen-User", "X-Yumen-Assertion", "X-Forwarded-For"} {
		if len(h[k]) != 1 {
			t.Errorf("%s = %q, want one value", k, h[k])
		}
	}
	for _, k := range []string{"X-Mine", "Keep-Alive", "Proxy-Connection", "Te", "Connection"} {
		if h[k] != nil {
			t.Errorf("%s = %q crossed the hop", k, h[k])
		}
	}
}

func TestM153_AssertionVerifiesByThePublishedKey(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader))
	for _, proto := range protocols {
		c := f.client(proto)
		_, body := do(t, c, "GET", "https://"+host+"/", nil, nil)
		token := headersOf(t, body)["X-Yumen-Assertion"][0]
		res, keys := do(t, c, "GET", "https://"+host+jwksPath, nil, nil)
		var set jose.JSONWebKeySet
		if err := json.Unmarshal([]byte(keys), &set); err != nil || res.StatusCode != 200 {
			t.Fatalf("%d %q: %v", res.StatusCode, keys, err)
		}
		jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		payload, err := jws.Verify(set)
		if err != nil {
			t.Fatal(err)
		}
		var got claims
		if err := json.Unmarshal(payload, &got); err != nil {
			t.Fatal(err)
		}
		if got.Issuer != "GW000000001" || got.Audience != "APP00000001" || got.Subject != "USR00000001" || got.Device != "DEV00000001" ||
			got.Level != 2 || got.Expiry-got.IssuedAt != 60 || got.ID == "" || got.Session != "s1" || time.Until(time.Unix(got.Expiry, 0)) < 20*time.Second {
			t.Errorf("claims %+v", got)
		}
		if _, body := do(t, c, "GET", "https://"+host+"/", nil, nil); headersOf(t, body)["X-Yumen-Assertion"][0] != token && proto == "http/1.1" {
			t.Log("the token was renewed between two requests")
		}
	}
}

func TestS36_ApplicationCannotSetWhatIsOurs(t *testing.T) {
	up := upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h["Set-Cookie"] = []string{"__Host-yumen=evil; Path=/; Secure", "__host-YUMEN-login=evil", " __Host-yumen = evil", "=__Host-yumen=evil", "mine=1"}
		h.Set("X-Yumen-User", "evil")
		h.Set("X-Request-Id", "evil")
		h.Set("Proxy-Authenticate", "evil")
		h.Set("Alt-Svc", `h3="evil:443"`)
		h.Set("Clear-Site-Data", `"cookies"`)
		h.Set("Keep-Alive", "evil")
		h.Set("Connection", "X-Hop")
		h.Set("X-Hop", "evil")
		_, _ = io.WriteString(w, "fine")
	})
	f := newFixture(t, up)
	for _, proto := range protocols {
		res, body := do(t, f.client(proto), "GET", "https://"+host+"/", nil, nil)
		if body != "fine" || !slices.Equal(res.Header["Set-Cookie"], []string{"mine=1"}) {
			t.Errorf("%s: cookies %q, body %q", proto, res.Header["Set-Cookie"], body)
		}
		for k, v := range res.Header {
			if strings.Contains(strings.Join(v, " "), "evil") {
				t.Errorf("%s: %s: %q", proto, k, v)
			}
		}
	}
}

func TestGatewayCookiesStayAtTheGateway(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader))
	for _, proto := range protocols {
		_, body := do(t, f.client(proto), "GET", "https://"+host+"/", http.Header{"Cookie": {"a=1; __Host-yumen=secret; b=2", "__Host-yumen-login=secret"}}, nil)
		if got := headersOf(t, body)["Cookie"]; !slices.Equal(got, []string{"a=1; b=2"}) {
			t.Errorf("%s: Cookie %q", proto, got)
		}
	}
}

// What a compromised application answers wrongly becomes 502, or a reset when
// the answer has begun; it is never served as if it were whole.
func TestS36_BadAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		raw  string
		want int // 0: the answer is cut short
	}{
		"no http":           {"hello\r\n\r\n", 502},
		"status 99":         {"HTTP/1.1 099 x\r\nContent-Length: 0\r\n\r\n", 502},
		"status 700":        {"HTTP/1.1 700 x\r\nContent-Length: 0\r\n\r\n", 502},
		"two lengths":       {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", 502},
		"length junk":       {"HTTP/1.1 200 OK\r\nContent-Length: 2x\r\n\r\nab", 502},
		"encoding junk":     {"HTTP/1.1 200 OK\r\nTransfer-Encoding: junk\r\n\r\nab", 502},
		"header bomb":       {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 200<<10) + "\r\n\r\n", 502},
		"1xx flood":         {strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n", 100) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 502},
		"101 unasked":       {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 502},
		"closes":            {"", 502},
		"body shorter":      {"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nshort", 0},
		"chunk junk":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", 0},
		"body longer":       {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nevil", 200},
		"length and chunks": {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200},
	} {
		t.Run(name, func(t *testing.T) {
			up := rawUpstream(t, c.raw)
			f := newFixture(t, up)
			for _, proto := range protocols {
				res, err := f.client(proto).Get("https://" + host + "/")
				if err != nil {
					if c.want != 0 {
						t.Errorf("%s: %v", proto, err)
					}
					continue
				}
				b, err := io.ReadAll(res.Body)
				res.Body.Close()
				if c.want == 0 {
					if err == nil {
						t.Errorf("%s: a short answer ended well: %d %q", proto, res.StatusCode, b)
					}
					continue
				}
				if res.StatusCode != c.want || strings.Contains(string(b), "evil") || c.want == 200 && string(b) != "ok" {
					t.Errorf("%s: %d %q, want %d", proto, res.StatusCode, b, c.want)
				}
			}
		})
	}
}
