package proxy

import (
	"strings"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// CookiePrefix begins the name of every cookie of the gateway's own. They never
// reach an upstream, and no upstream can set one.
const CookiePrefix = "__Host-yumen"

// hop are the fields that end at each hop, with those that look like it.
var hop = set("connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization",
	"proxy-authentication-info", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings", "alt-svc", "alt-used", "proxy")

// ours are the request fields that the gateway alone may set, besides those
// with the prefixes of spoofed. What aims at another path, host or method than
// the one that the policy saw is among them.
var ours = set("forwarded", "x-real-ip", "x-client-ip", "client-ip", "true-client-ip", "x-cluster-client-ip", "cf-connecting-ip", "fastly-client-ip",
	"x-request-id", "x-original-url", "x-rewrite-url", "x-original-uri", "x-original-host", "x-host", "x-http-host-override",
	"x-http-method", "x-http-method-override", "x-method-override", "x-remote-user", "remote-user", "x-remote-addr", "remote-addr",
	"x-client-cert", "x-ssl-client-cert", "ssl-client-cert")

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// notForwarded are the request fields that the gateway makes anew.
var notForwarded = set("host", "content-length", "expect", "via")

// spoofed reports whether a client may not send the field that lower names.
func spoofed(lower []byte) bool {
	return ours[string(lower)] || hasPrefix(lower, "x-") && (hasPrefix(lower, "x-yumen-") || hasPrefix(lower, "x-forwarded-") ||
		hasPrefix(lower, "x-zt-") || hasPrefix(lower, "x-ssl-client-"))
}

func hasPrefix(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && string(b[:len(prefix)]) == prefix
}

// connection returns the names, in lower case, that Connection lists and that
// do not end at each hop anyway.
func connection(h exchange.Header) (listed map[string]bool) {
	h.EachToken("Connection", func(t string) {
		var low [lowest]byte
		l := lower(&low, t)
		if hop[string(l)] || string(l) == "close" {
			return
		}
		if listed == nil {
			listed = map[string]bool{}
		}
		listed[string(l)] = true
	})
	return listed
}

// lowest is how long a name may be that needs no memory of its own.
const lowest = 48

// lower returns name in lower case, in buf if it fits.
func lower(buf *[lowest]byte, name string) []byte {
	if len(name) > lowest {
		return []byte(strings.ToLower(name))
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		buf[i] = c
	}
	return buf[:len(name)]
}

// cleanName reports whether a field name has letters, digits and hyphens only.
// Programs behind CGI-like interfaces read "_" and other marks as "-", so that
// X_Yumen_User would be X-Yumen-User to them.
func cleanName(name string) bool {
	for i := 0; i < len(name); i++ {
		c := name[i]
		if l := c | 0x20; (l < 'a' || l > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return name != ""
}

func cleanValue(v string) bool {
	for i := 0; i < len(v); i++ {
		if c := v[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// forwardable returns the fields of a request that go on to the upstream. The
// list is built anew: what the client names in Connection is dropped from its
// own fields, and can never touch those that the gateway adds afterwards.
func forwardable(h exchange.Header, extra int) exchange.Header {
	listed := connection(h)
	out := make(exchange.Header, 0, len(h)+extra)
	var cookies []string
	var low [lowest]byte
	for _, f := range h {
		l := lower(&low, f.Name)
		switch {
		case hop[string(l)], spoofed(l), listed[string(l)]:
		case notForwarded[string(l)]:
		case string(l) == "cookie":
			cookies = appendCookies(cookies, f.Value)
		default:
			out = append(out, f)
		}
	}
	if len(cookies) > 0 {
		out.Add("Cookie", strings.Join(cookies, "; "))
	}
	return out
}

// appendCookies adds the cookies of one field that are not the gateway's.
func appendCookies(to []string, value string) []string {
	for c := range strings.SplitSeq(value, ";") {
		c = strings.Trim(c, " \t")
		if name, _, _ := strings.Cut(c, "="); c != "" && !ownCookie(name) {
			to = append(to, c)
		}
	}
	return to
}

func ownCookie(name string) bool {
	name = strings.Trim(name, " \t")
	return len(name) >= len(CookiePrefix) && strings.EqualFold(name[:len(CookiePrefix)], CookiePrefix)
}

// forwardableTrailers keeps the announced request trailers that may go on.
func forwardableTrailers(names []string) []string {
	var out []string
	for _, n := range names {
		var low [lowest]byte
		l := lower(&low, n)
		if cleanName(n) && !hop[string(l)] && !spoofed(l) && !trailerForbidden[string(l)] {
			out = append(out, n)
		}
	}
	return out
}

var trailerForbidden = set("host", "content-length", "content-type", "content-encoding", "content-range", "cookie", "set-cookie",
	"authorization", "cache-control", "expect", "max-forwards", "pragma", "range", "via", "location")

// answerable returns the fields of an upstream's answer that go to the client:
// nothing of the hop, none of the gateway's cookies and names.
func answerable(h exchange.Header) exchange.Header {
	listed := connection(h)
	out := make(exchange.Header, 0, len(h)+4)
	var low [lowest]byte
	for _, f := range h {
		l := lower(&low, f.Name)
		switch {
		case hop[string(l)], listed[string(l)], string(l) == "content-length", string(l) == "x-request-id", hasPrefix(l, "x-yumen-"):
		case string(l) == "set-cookie" && ownCookie(cookieName(f.Value)):
		case string(l) == "clear-site-data" && strings.Contains(strings.ToLower(f.Value), "cookies"):
			// It would take the gateway's own cookie away, too.
		default:
			out = append(out, f)
		}
	}
	return out
}

func cookieName(setCookie string) string {
	pair, _, _ := strings.Cut(setCookie, ";")
	name, value, ok := strings.Cut(pair, "=")
	if name = strings.Trim(name, " \t"); ok && name == "" {
		return value // a nameless cookie: browsers send its value as if it were a name
	}
	return name
}
