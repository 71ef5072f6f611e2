package proxy

import (
	"net/http"
	"strings"
	"testing"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/reason"
)

// bypasses are spellings by which /pub/ might become /admin.
func bypasses() []string {
	var out []string
	sep := []string{"/", "//", "///", "%2f", "%2F", "\\", "%5c", "%5C", "/./", "%252f", "%255c", ";/", ";x=1/", "%3b/", "%00/", "%0a/", "\uff0f", "%ef%bc%8f", "%c0%af", "%e0%80%af", "%u2215", "%u002f", "/%09/"}
	dots := []string{"..", "%2e%2e", "%2E.", ".%2e", "%252e%252e", "..;", "..;x", "..%00", "..%20", "...", "%c0%ae%c0%ae", "..%0d", "．．", "%ef%bc%8e%ef%bc%8e", "%e2%80%a5", "%2e%2e%2e", ".%00."}
	for _, s := range sep {
		for _, d := range dots {
			out = append(out, "/pub"+s+d+s+"admin", "/pub/"+d+s+"admin")
		}
	}
	return append(out, "/admin", "//admin", "/./admin", "/admin/", "/admin.", "/admin%2e", "/admin%20", "/admin;x", "/admin%3bx", "/ADMIN", "/%61dmin", "/%2561dmin",
		"/admin%00.css", "/admin%0a", "/admin%2f", "/admin\\", "/admin?x", "/admin#x", "/pub%2f..%2fadmin", "/pub\\..\\admin", "/;/admin", "/.;/admin", "/pub/..", "/..", "/.", "/pub/.",
		"/%", "/%2", "/%zz", "/pub/%ff", "/pub/\xff", "/pub/ x", "/pub/\x01", "admin", "", "*", "http:admin", "//"+host+"/admin")
}

// TestS13_NoSpellingReachesADeniedPath sends every spelling through both front
// ends to a gateway whose policy permits /pub/* alone.
func TestS13_NoSpellingReachesADeniedPath(t *testing.T) {
	rec := newRecorder(t)
	f := newFixture(t, rec.url())
	f.gate.refuse = func(r *policy.Request) access.Refusal {
		if strings.HasPrefix(r.Path, "/pub/") {
			return access.Refusal{}
		}
		return access.Refusal{Reason: reason.PolicyApp, PolicyID: "POL00000001"}
	}
	all := append(bypasses(), "/pub/x", "/pub/%78")
	if len(all) < 200 {
		t.Fatalf("%d variants, at least 200 wanted", len(all))
	}
	passed := 0
	for _, target := range all {
		status, _, _ := f.exchange(host, "GET "+target+" HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n", false)
		if status == 200 {
			passed++
		} else if status != 400 && status != 403 && status != 0 {
			t.Errorf("%q: status %d", target, status)
		}
		if status2 := h2Get(t, f, target); status2 != status && status2 != 0 && status != 0 && target != "" {
			t.Errorf("%q: %d by HTTP/1.1, %d by HTTP/2", target, status, status2)
		}
	}
	if passed == 0 {
		t.Error("nothing was permitted: the test proves nothing")
	}
	// Everything that went through was judged and sent in one spelling, below /pub/.
	rec.mu.Lock()
	defer rec.mu.Unlock()
	for path := range rec.n {
		if !strings.HasPrefix(path, "/pub/") || strings.Contains(path, "..") || strings.ContainsAny(path, "\\;") {
			t.Errorf("the upstream saw %q", path)
		}
	}
	f.gate.mu.Lock()
	defer f.gate.mu.Unlock()
	for _, p := range f.gate.paths {
		if !strings.Contains(rec.b.String(), "GET "+p+" ") {
			t.Errorf("the policy saw %q, the upstream did not", p)
		}
	}
	t.Logf("%d variants, %d permitted", len(all), passed)
}

func h2Get(t *testing.T, f *fixture, target string) int {
	r, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+host+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.URL.Opaque = target
	res, err := f.h2().Do(r)
	if err != nil {
		return 0 // refused as a stream, or by the client itself
	}
	res.Body.Close()
	return res.StatusCode
}

func TestS13_OnePathForPolicyAndUpstream(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader))
	for sent, want := range map[string]string{
		"/a/b":            "/a/b",
		"/%61/%7Euser":    "/a/~user",
		"/a//b///c":       "/a/b/c",
		"/a%20b":          "/a%20b",
		"/a+b%2Bc":        "/a+b%2Bc",
		"/%e7%8e%89":      "/%E7%8E%89",
		"/a:b@c":          "/a:b@c",
		"/a%3Ab":          "/a:b",
		"/a[1]|b":         "/a%5B1%5D%7Cb",
		"/100%25":         "/100%25",
		"/a?b=//c/../d":   "/a?b=//c/../d",
		"/a?%zz":          "/a?%zz",
		"/a/?":            "/a/",
		"/v1.2/x.tar.gz":  "/v1.2/x.tar.gz",
		"/.well-known/x":  "/.well-known/x",
		"/..a/...b/c..d":  "/..a/...b/c..d",
		"/a'(b)!*,=&$c":   "/a'(b)!*,=&$c",
		"/%28%29%27%2a":   "/()'*",
		"/a?\xe7\x8e\x89": "/a?%E7%8E%89",
	} {
		status, _, body := f.exchange(host, "GET "+sent+" HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n", false)
		if status != 200 {
			t.Errorf("%s: %d %s", sent, status, body)
			continue
		}
		if got := headersOf(t, body)[":target"][0]; got != want {
			t.Errorf("%s: upstream got %s, want %s", sent, got, want)
		}
		path, _, _ := strings.Cut(want, "?")
		if got := f.gate.paths[len(f.gate.paths)-1]; got != path {
			t.Errorf("%s: policy saw %s, want %s", sent, got, path)
		}
	}
}

func TestS14_HostsThatAreRefused(t *testing.T) {
	rec := newRecorder(t)
	f := newFixture(t, rec.url())
	for h, want := range map[string]int{
		"other.example.test": 421, "nobody.example.test": 421, "a@" + host: 400, host + ":port": 400, host + ":0": 400, host + ":65536": 400, host + ":-1": 400, host + ":": 400,
		host + ".": 400, host + "..": 400, "127.0.0.1": 421, "[::1]": 421, "2130706433": 400, "0x7f.1": 400, host + "/": 400, host + "?x": 400, host + "#x": 400,
		host + "\\": 400, host + " x": 400, "": 400, "*." + host: 400, "xn--app.example.test": 421, "\u24d0pp.example.test": 400, host + "%00": 400, host + ",other.example.test": 400, "169.254.169.254": 421,
	} {
		if got, _, _ := f.exchange(host, "GET / HTTP/1.1\r\nHost: "+h+"\r\nConnection: close\r\n\r\n", false); got != want {
			t.Errorf("Host %q: %d, want %d", h, got, want)
		}
	}
	for _, h := range []string{"APP.Example.Test", host + ":443", host + ":8443"} {
		if got, _, _ := f.exchange(host, "GET /ok HTTP/1.1\r\nHost: "+h+"\r\nConnection: close\r\n\r\n", false); got != 200 {
			t.Errorf("Host %q: %d, want 200", h, got)
		}
	}
	if got, _, _ := f.exchange("nobody.example.test", "GET / HTTP/1.1\r\nHost: nobody.example.test\r\nConnection: close\r\n\r\n", false); got != 404 {
		t.Errorf("a host without application: %d, want 404", got)
	}
	if n, all := rec.seen("/"); n > 0 {
		t.Errorf("the upstream saw %s", all)
	}
}

func TestS15_MethodsThatAreRefused(t *testing.T) {
	rec := newRecorder(t)
	f := newFixture(t, rec.url())
	for line, want := range map[string]int{
		"TRACE / HTTP/1.1":                                405,
		"TRACK / HTTP/1.1":                                405,
		"CONNECT 169.254.169.254:80 HTTP/1.1":             405,
		"CONNECT / HTTP/1.1":                              405,
		"get / HTTP/1.1":                                  405,
		"DEBUG / HTTP/1.1":                                405,
		"OPTIONS * HTTP/1.1":                              400,
		"GET http://169.254.169.254/latest HTTP/1.1":      421,
		"GET http://127.0.0.1/ HTTP/1.1":                  421,
		"GET http://[::1]/ HTTP/1.1":                      421,
		"GET http://0.0.0.0/ HTTP/1.1":                    421,
		"GET http://" + host + "/ HTTP/1.1":               400,
		"GET //169.254.169.254/../x HTTP/1.1":             400,
		"GET " + strings.Repeat("/a", 5000) + " HTTP/1.1": 400,
	} {
		got, _, body := f.exchange(host, line+"\r\nHost: "+host+"\r\nConnection: close\r\n\r\n", false)
		if got != want && !(strings.HasPrefix(line, "CONNECT") && (got == 400 || got == 421)) {
			t.Errorf("%s: %d %s, want %d", line[:min(60, len(line))], got, body, want)
		}
	}
	if n, all := rec.seen("/"); n > 0 {
		t.Errorf("the upstream saw %s", all)
	}
}

func FuzzCanonicalTarget(f *testing.F) {
	for i, s := range bypasses() {
		if i%16 == 0 {
			f.Add(s)
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		path, query, err := canonicalTarget(s)
		if err != nil {
			return
		}
		if path == "" || path[0] != '/' || strings.Contains(path, "//") || strings.ContainsAny(path, "\\;?# \x00") {
			t.Fatalf("%q: path %q", s, path)
		}
		for seg := range strings.SplitSeq(path, "/") {
			if seg == "." || seg == ".." || strings.HasSuffix(seg, ".") {
				t.Fatalf("%q: segment %q", s, seg)
			}
		}
		lower := strings.ToLower(path)
		for _, bad := range []string{"%2f", "%5c", "%00", "%2e", "%3b", "%252e", "%252f"} {
			if strings.Contains(lower, bad) {
				t.Fatalf("%q: %s in %q", s, bad, path)
			}
		}
		again := path
		if query != "" {
			again += "?" + query
		}
		p2, q2, err := canonicalTarget(again)
		if err != nil || p2 != path || q2 != query {
			t.Fatalf("%q: %q %q, again %q %q %v", s, path, query, p2, q2, err)
		}
	})
}

func FuzzParseAuthority(f *testing.F) {
	for _, s := range []string{host, host + ":443", "a@b", "[::1]:1", "1.2.3.4", "a..b", "xn--a", "A.b."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, port, err := parseAuthority(s)
		if err != nil {
			return
		}
		if h == "" || h != strings.ToLower(h) || strings.ContainsAny(h, "@:/\\%[] \x00") || strings.HasSuffix(h, ".") {
			t.Fatalf("%q: host %q", s, h)
		}
		if h2, p2, err := parseAuthority(h + map[bool]string{true: ":" + port}[port != ""]); err != nil || h2 != h || p2 != port {
			t.Fatalf("%q: %q %q, again %q %q %v", s, h, port, h2, p2, err)
		}
	})
}
