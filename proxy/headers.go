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

// spoofed reports whether a client may not send the field that lower names.
func spoofed(lower string) bool {
	return ours[lower] || strings.HasPrefix(lower, "x-yumen-") || strings.HasPrefix(lower, "x-forwarded-") ||
		strings.HasPrefix(lower, "x-zt-") || strings.HasPrefix(lower, "x-ssl-client-")
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
	var listed map[string]bool
	h.EachToken("Connection", func(t string) {
		if listed == nil {
			listed = map[string]bool{}
		}
		listed[strings.ToLower(t)] = true
	})
	out := make(exchange.Header, 0, len(h)+extra)
	var cookies []string
	for _, f := range h {
		l := strings.ToLower(f.Name)
		switch {
		case hop[l], listed[l], spoofed(l):
		case l == "host", l == "content-length", l == "expect", l == "via":
		case l == "cookie":
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
		l := strings.ToLower(n)
		if cleanName(n) && !hop[l] && !spoofed(l) && !trailerForbidden[l] {
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
	var listed map[string]bool
	h.EachToken("Connection", func(t string) {
		if listed == nil {
			listed = map[string]bool{}
		}
		listed[strings.ToLower(t)] = true
	})
	out := make(exchange.Header, 0, len(h)+4)
	for _, f := range h {
		l := strings.ToLower(f.Name)
		switch {
		case hop[l], listed[l], l == "content-length", l == "x-request-id", strings.HasPrefix(l, "x-yumen-"):
		case l == "set-cookie" && ownCookie(cookieName(f.Value)):
		case l == "clear-site-data" && strings.Contains(strings.ToLower(f.Value), "cookies"):
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
