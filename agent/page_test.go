package agent

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/yumen-zt/yumen/wire"
)

func TestStatusPageAnswersItsOwnAddressOnly(t *testing.T) {
	r := newRig(t, allFaces).serve()
	addr := r.face("status_page")
	_, port, _ := strings.Cut(addr, ":")
	get := func(method, path, host string, header map[string]string) (int, string, http.Header) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		for k, v := range header {
			req.Header.Set(k, v)
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b), res.Header
	}
	for _, tc := range []struct {
		name, host string
		header     map[string]string
		want       int
	}{
		{"own address", addr, nil, 200},
		{"localhost", "LocalHost:" + port, nil, 200},
		{"same origin", addr, map[string]string{"Origin": "http://" + addr}, 200},
		{"rebound name", "evil.test:" + port, nil, 403},
		{"rebound name without port", "evil.test", nil, 403},
		{"other port", "127.0.0.1:1", nil, 403},
		{"no port", "127.0.0.1", nil, 403},
		{"address in a name", addr + ".evil.test", nil, 403},
		{"other origin", addr, map[string]string{"Origin": "http://evil.test"}, 403},
		{"null origin", addr, map[string]string{"Origin": "null"}, 403},
		{"https origin", addr, map[string]string{"Origin": "https://" + addr}, 403},
		{"cross site", addr, map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
	} {
		for _, path := range []string{"/", "/status.json"} {
			code, body, h := get("GET", path, tc.host, tc.header)
			if code != tc.want {
				t.Errorf("%s %s: status %d, want %d", tc.name, path, code, tc.want)
			}
			if code != 200 && strings.Contains(body, testID.AgentID) {
				t.Errorf("%s %s: a refusal shows the status", tc.name, path)
			}
			if h.Get("Access-Control-Allow-Origin") != "" || !strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'") {
				t.Errorf("%s %s: header %v", tc.name, path, h)
			}
		}
	}
	if code, _, _ := get("POST", "/", addr, nil); code != 405 {
		t.Errorf("POST: status %d, want 405: the page changes nothing", code)
	}
	r.dialer.last().notices(&wire.Notice{ExceptionAlertType: "9.9", ExceptionAlertContent: "<script>alert(1)</script>"})
	_, body, _ := get("GET", "/", addr, nil)
	for _, want := range []string{testUser, "GW000000001", "APP00000001", "已就绪", "ready", "&lt;script&gt;"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, never := range []string{"aaaaaaaaaa1", "<script>alert"} {
		if strings.Contains(body, never) {
			t.Errorf("the page shows %q", never)
		}
	}
}
