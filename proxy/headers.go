package proxy

import (
	"strings"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// CookiePrefix begins the name of every cookie of the gateway's own. They never
// reach an upstream, and no upstream can set one.
const CookiePrefix = "__Host-yumen"

// class says what the gateway does with the fields of a name.
type class uint8

const (
	hop         class = 1 << iota // ends at each hop, or looks like what does
	spoofed                       // of a request: the gateway alone may set it
	remade                        // of a request: the gateway makes it anew
	cookie                        // of a request
	noTrailer                     // has no place in a trailer
	ofAnswer                      // of an answer: the gateway alone may set it
	setCookie                     // of an answer
	clearsSite                    // of an answer
	notRequest  = hop | spoofed | remade
	notAnswer   = hop | ofAnswer
	notTrailing = hop | spoofed | noTrailer
)

// classOf returns the class of the field name that lower spells in lower case.
// What aims at another path, host or method than the one that the policy saw is
// spoofed, too. A switch and not a map: every field of every request comes here.
func classOf(lower []byte) class {
	switch string(lower) {
	case "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "proxy-authentication-info", "te", "trailer",
		"transfer-encoding", "upgrade", "http2-settings", "alt-svc", "alt-used", "proxy":
		return hop
	case "host", "expect", "via":
		return remade | noTrailer
	case "content-length":
		return remade | noTrailer | ofAnswer
	case "cookie":
		return cookie | noTrailer
	case "set-cookie":
		return setCookie | noTrailer
	case "clear-site-data":
		return clearsSite
	case "content-type", "content-encoding", "content-range", "authorization", "cache-control", "max-forwards", "pragma", "range", "location":
		return noTrailer
	case "x-request-id":
		return spoofed | ofAnswer
	case "forwarded", "x-real-ip", "x-client-ip", "client-ip", "true-client-ip", "x-cluster-client-ip", "cf-connecting-ip", "fastly-client-ip",
		"x-original-url", "x-rewrite-url", "x-original-uri", "x-original-host", "x-host", "x-http-host-override",
		"x-http-method", "x-http-method-override", "x-method-override", "x-remote-user", "remote-user", "x-remote-addr", "remote-addr",
		"x-client-cert", "x-ssl-client-cert", "ssl-client-cert":
		return spoofed
	}
	switch {
	case !hasPrefix(lower, "x-"):
	case hasPrefix(lower, "x-yumen-"):
		return spoofed | ofAnswer
	case hasPrefix(lower, "x-forwarded-"), hasPrefix(lower, "x-zt-"), hasPrefix(lower, "x-ssl-client-"):
		return spoofed
	}
	return 0
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
		if classOf(l)&hop != 0 || string(l) == "close" {
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
		if !nameByte[name[i]] {
			return false
		}
	}
	return name != ""
}

var nameByte = func() (t [256]bool) {
	for _, c := range []byte("-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		t[c] = true
	}
	return t
}()

// cleanValue reports whether v has no control character but tabs.
func cleanValue(v string) bool { return !exchange.HasControl(v) }

// forwardable appends to out the fields of a request that go on to the
// upstream. The list is built anew: what the client names in Connection is
// dropped from its own fields, and can never touch those that the gateway adds
// afterwards.
func forwardable(out, h exchange.Header) exchange.Header {
	listed := connection(h)
	var few [16]string
	cookies := few[:0]
	var low [lowest]byte
	for i := range h {
		l := lower(&low, h[i].Name)
		switch c := classOf(l); {
		case c&notRequest != 0, listed[string(l)]:
		case c&cookie != 0:
			cookies = appendCookies(cookies, h[i].Value)
		default:
			out = append(out, h[i])
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
		if cleanName(n) && classOf(l)&notTrailing == 0 {
			out = append(out, n)
		}
	}
	return out
}

// answerable appends to out the fields of an upstream's answer that go to the
// client: nothing of the hop, none of the gateway's cookies and names.
func answerable(out, h exchange.Header) exchange.Header {
	listed := connection(h)
	var low [lowest]byte
	for i := range h {
		l := lower(&low, h[i].Name)
		switch c := classOf(l); {
		case c&notAnswer != 0, listed[string(l)]:
		case c&setCookie != 0 && ownCookie(cookieName(h[i].Value)):
		case c&clearsSite != 0 && strings.Contains(strings.ToLower(h[i].Value), "cookies"):
			// It would take the gateway's own cookie away, too.
		default:
			out = append(out, h[i])
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
