package proxy

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

// A panic ends its own request alone.
func TestR22_PanicIsContained(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader))
	f.gate.refuse = func(r *policy.Request) access.Refusal {
		if r.Path == "/panic" {
			panic("boom")
		}
		return access.Refusal{}
	}
	for _, proto := range protocols {
		c := f.client(proto)
		for range 3 {
			if res, body := do(t, c, "GET", "https://"+host+"/panic", nil, nil); res.StatusCode != 500 || strings.Contains(body, "boom") {
				t.Errorf("%s: %d %s", proto, res.StatusCode, body)
			}
			if res, _ := do(t, c, "GET", "https://"+host+"/", nil, nil); res.StatusCode != 200 {
				t.Errorf("%s: the next request: %d", proto, res.StatusCode)
			}
		}
	}
	if n := testutil.ToFloat64(f.p.metrics.panics); n != 6 {
		t.Errorf("%v panics counted, want 6", n)
	}
	if n := testutil.ToFloat64(f.p.metrics.inFlight); n != 0 {
		t.Errorf("%v requests in flight", n)
	}
	for a := range f.alerts {
		if a.Code == alert.InternalFault {
			break
		}
	}
}

func TestS15_LoopStopsAtTheFirstHop(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader))
	_, body := do(t, f.client("http/1.1"), "GET", "https://"+host+"/", http.Header{"Via": {"1.1 else"}}, nil)
	via := headersOf(t, body)["Via"][0]
	if via != "1.1 else, 1.1 yumen-GW000000001" {
		t.Errorf("Via %q", via)
	}
	if res, _ := do(t, f.client("http/1.1"), "GET", "https://"+host+"/", http.Header{"Via": {via}}, nil); res.StatusCode != 508 {
		t.Errorf("status %d, want 508", res.StatusCode)
	}
}

func TestUpstreamsThatFail(t *testing.T) {
	for name, c := range map[string]struct {
		upstream string
		allow    []string
		want     string
	}{
		"refused": {"http://127.0.0.1:1", []string{"127.0.0.0/8"}, "YM-503"},
		"address": {"http://127.0.0.1:1", nil, "YM-506"},
		"no name": {"http://nobody.invalid:1", nil, "YM-503"},
		"tls":     {"https://" + newRecorder(t).l.Addr().String(), []string{"127.0.0.0/8"}, "YM-50"},
	} {
		f := newFixture(t, c.upstream, with(func(fc *fixtureConfig) { fc.app.AllowAddresses = c.allow }))
		res, body := do(t, f.client("http/1.1"), "GET", "https://"+host+"/", nil, nil)
		if res.StatusCode != 502 || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s, want 502 %s", name, res.StatusCode, body, c.want)
		}
	}
	silent := upstreamOf(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	f := newFixture(t, silent, with(func(fc *fixtureConfig) { fc.cfg.Limits.AnswerTimeout = 50 * time.Millisecond }))
	if res, body := do(t, f.client("http/1.1"), "GET", "https://"+host+"/", nil, nil); res.StatusCode != 504 || !strings.Contains(body, "YM-504") {
		t.Errorf("silent: %d %s", res.StatusCode, body)
	}
}

func TestOfflineApplication(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader), with(func(fc *fixtureConfig) { fc.app.DemandIdentity = true }))
	c := f.client("h2")
	if res, body := do(t, c, "GET", "https://"+host+"/", nil, nil); res.StatusCode != 503 || !strings.Contains(body, "YM-502") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	f.p.site.Load().registry.ID("APP00000001").SetOnline(time.Now().Add(time.Minute))
	if res, _ := do(t, c, "GET", "https://"+host+"/", nil, nil); res.StatusCode != 200 {
		t.Errorf("online: %d", res.StatusCode)
	}
}

func TestPublicPathsAloneNeedNoSubject(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader), with(func(fc *fixtureConfig) {
		fc.cfg.Authenticate = ClientCertificate{}
		fc.app.PublicPaths = []string{"/health", "/static/*"}
	}))
	for path, want := range map[string]int{"/health": 200, "/static/a/b.css": 200, "/static/": 200, "/static": 401, "/healthy": 401, "/health/x": 401, "/": 401, "/static/..%2fadmin": 400, "/static/../admin": 400, "/static//../admin": 400} {
		status, _, body := f.exchange(host, "GET "+path+" HTTP/1.1\r\nHost: "+host+"\r\nX-Yumen-User: evil\r\nConnection: close\r\n\r\n", false)
		if status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
		if status == 200 && strings.Contains(body, "X-Yumen-") {
			t.Errorf("%s: identity on a public path: %s", path, body)
		}
	}
	if n, _ := f.gate.balance(); n != 0 {
		t.Errorf("%d leases", n)
	}
	found := false
	for _, r := range f.audit.all {
		found = found || r.Allowed && r.Path == "/health" && r.AppID == "APP00000001" && r.RequestID != "" && r.Remote != ""
	}
	if !found {
		t.Error("no audit record of the public request")
	}
}

func TestClientCertificateIsTheSubject(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader), with(func(fc *fixtureConfig) { fc.cfg.Authenticate = ClientCertificate{Level: 3} }))
	for name, c := range map[string]struct {
		uris []string
		want int
		code string
	}{
		"device and user": {[]string{"urn:yumen:device:DEV00000009", "urn:yumen:user:USR00000009", "urn:yumen:agent:AGT00000009"}, 200, ""},
		"no user":         {[]string{"urn:yumen:device:DEV00000009"}, 401, "YM-201"},
		"no device":       {[]string{"urn:yumen:user:USR00000009", "urn:yumen:agent:AGT00000009"}, 403, "YM-207"},
		"two users":       {[]string{"urn:yumen:device:DEV00000009", "urn:yumen:user:USR00000009", "urn:yumen:user:USR00000008"}, 401, "YM-109"},
		"junk user":       {[]string{"urn:yumen:device:DEV00000009", "urn:yumen:user:a%20b"}, 401, "YM-109"},
		"foreign":         {[]string{"urn:else:device:DEV00000009"}, 401, "YM-109"},
	} {
		for _, proto := range protocols {
			res, body := do(t, f.client(proto, f.ca.issue(t, c.uris...)), "GET", "https://"+host+"/", nil, nil)
			if res.StatusCode != c.want || !strings.Contains(body, c.code) {
				t.Errorf("%s, %s: %d %s, want %d %s", name, proto, res.StatusCode, body, c.want, c.code)
				continue
			}
			if c.want == 200 {
				h := headersOf(t, body)
				if h["X-Yumen-User"][0] != "USR00000009" || h["X-Yumen-Device"][0] != "DEV00000009" || h["X-Yumen-Level"][0] != "3" || len(h["X-Yumen-Session"][0]) < 16 {
					t.Errorf("%v", h)
				}
			}
		}
	}
}

// redirecting is an authenticator that sends people to a sign-in.
type redirecting struct{ ClientCertificate }

func (redirecting) Challenge(x *Exchange, r reason.Reason) bool {
	if WantsJSON(x) {
		return false
	}
	x.Respond(302, Header{{Name: "Location", Value: "https://login.example.test/?to=" + x.Host + x.Path + "?" + x.Query}}, nil)
	return true
}

func TestM155_M156_PagesAreRedirectedProgramsGet401(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader), with(func(fc *fixtureConfig) { fc.cfg.Authenticate = FirstOf(ClientCertificate{}, redirecting{}) }))
	for _, proto := range protocols {
		c := f.client(proto)
		res, _ := do(t, c, "GET", "https://"+host+"/page?x=1", http.Header{"Accept": {"text/html"}, "Sec-Fetch-Mode": {"navigate"}}, nil)
		if res.StatusCode != 302 || res.Header.Get("Location") != "https://login.example.test/?to="+host+"/page?x=1" || res.Header.Get("X-Request-Id") == "" {
			t.Errorf("%s: %d %v", proto, res.StatusCode, res.Header)
		}
		for _, h := range []http.Header{{"X-Requested-With": {"XMLHttpRequest"}, "Accept": {"text/html"}}, {"Accept": {"application/json"}}, {"Sec-Fetch-Mode": {"cors"}, "Accept": {"text/html"}}, nil} {
			res, body := do(t, c, "GET", "https://"+host+"/page", h, nil)
			var got map[string]string
			if err := json.Unmarshal([]byte(body), &got); err != nil || res.StatusCode != 401 || got["code"] != "YM-201" || got["reason"] != "login_required" ||
				got["text"] == "" || got["request_id"] != res.Header.Get("X-Request-Id") {
				t.Errorf("%s %v: %d %s", proto, h, res.StatusCode, body)
			}
		}
	}
}

func TestRefusalPageSpeaksBothLanguagesAndRunsNothing(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader))
	f.gate.refuse = func(*policy.Request) access.Refusal {
		return access.Refusal{Reason: reason.Locked, PolicyID: "POL00000007", Message: "<script>alert(1)</script>"}
	}
	for lang, first := range map[string]string{"zh-CN,zh;q=0.9,en;q=0.8": "zh-CN", "en-US,en;q=0.9": "en", "en;q=0.1, zh;q=0.9": "zh-CN", "de": "en", "": "zh-CN", "*": "zh-CN", "zh;q=junk": "zh-CN"} {
		h := http.Header{"Accept": {"text/html,*/*"}}
		if lang != "" {
			h["Accept-Language"] = []string{lang}
		}
		res, body := do(t, f.h2(), "GET", "https://"+host+"/", h, nil)
		for _, want := range []string{`<html lang="` + first + `">`, "YM-219", "POL00000007", "已被管理员锁定", "locked by the administrator", res.Header.Get("X-Request-Id"), "&lt;script&gt;"} {
			if !strings.Contains(body, want) {
				t.Errorf("%q: page lacks %q:\n%s", lang, want, body)
			}
		}
		csp := res.Header.Get("Content-Security-Policy")
		if res.StatusCode != 403 || strings.Contains(body, "<script") || strings.Contains(csp, "unsafe") || !strings.Contains(csp, "default-src 'none'") || res.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%d, policy %q", res.StatusCode, csp)
		}
	}
	f.gate.refuse = func(*policy.Request) access.Refusal { return access.Refusal{Reason: reason.AppUnknown} }
	if _, body := do(t, f.h2(), "GET", "https://"+host+"/", nil, nil); !strings.Contains(body, "YM-303") || strings.Contains(body, "YM-501") {
		t.Errorf("a stranger learns whether an application exists: %s", body)
	}
}

// What peers send reaches records as it is and never as a label or a page.
func TestS33_NothingOfThePeerInLabels(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader))
	for i := range 50 {
		_, _, _ = f.exchange(host, fmt.Sprintf("GET /%d\x1b[31m HTTP/1.1\r\nHost: %s\r\n\r\n", i, host), false)
		_, _, _ = f.exchange(host, fmt.Sprintf("X%d / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", i, host), false)
	}
	n, err := testutil.GatherAndCount(f.metrics)
	if err != nil || n > 60 {
		t.Errorf("%d series, %v", n, err)
	}
}

func TestOwnPagesAreServed(t *testing.T) {
	var seen *Exchange
	own := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = ExchangeOf(r)
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Set-Cookie", "__Host-yumen=1")
		w.WriteHeader(201)
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.Host, r.URL.Path, b)
	})
	f := newFixture(t, upstreamOf(t, echoHeader), with(func(fc *fixtureConfig) {
		fc.cfg.Handlers = []Handler{{Host: "login.example.test", Prefix: "/", Handler: own}, {Prefix: "/.yumen/", Handler: own}}
	}))
	for _, proto := range protocols {
		c := f.client(proto)
		for url, want := range map[string]string{"https://login.example.test/a%20b": "login.example.test /a b", "https://" + host + "/.yumen/enter": host + " /.yumen/enter"} {
			res, body := do(t, c, "POST", url, nil, strings.NewReader("body"))
			if res.StatusCode != 201 || body != "POST "+want+" body" || res.Header.Get("Set-Cookie") != "__Host-yumen=1" || seen == nil || seen.ID != res.Header.Get("X-Request-Id") {
				t.Errorf("%s %s: %d %q", proto, url, res.StatusCode, body)
			}
		}
		if res, _ := do(t, c, "GET", "https://nobody.example.test/.yumen/enter", nil, nil); res.StatusCode != 404 {
			t.Errorf("%s: own pages on a strange host: %d", proto, res.StatusCode)
		}
	}
}

func TestFiguresAreOfTheApplication(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte("12345")) }))
	do(t, f.client("http/1.1"), "GET", "https://"+host+"/", nil, nil)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // a request is counted behind its answer
		bytes, ended := 0.0, uint64(0)
		all, err := f.metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			for _, x := range m.Metric {
				of := map[string]string{}
				for _, l := range x.Label {
					of[l.GetName()] = l.GetValue()
				}
				switch m.GetName() {
				case "yumen_proxy_body_bytes_total":
					if of["app"] == "APP00000001" && of["direction"] == "out" {
						bytes = x.Counter.GetValue()
					}
				case "yumen_proxy_request_duration_seconds":
					if of["app"] == "APP00000001" {
						ended = x.Histogram.GetSampleCount()
					}
				}
			}
		}
		if bytes == 5 && ended == 1 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%v bytes and %d requests, want 5 and 1", bytes, ended)
		}
	}
}
