package proxy

import (
	"slices"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// corsOrigin returns the origin of the page that asks, when it is another one
// that the application lets ask; else "".
func corsOrigin(x *Exchange) string {
	if x.App == nil || len(x.App.CORSOrigins) == 0 {
		return ""
	}
	if o := x.Header.Get("Origin"); slices.Contains(x.App.CORSOrigins, o) {
		return o
	}
	return ""
}

// preflight reports whether x is the question of a browser that comes before a
// page's request and never carries a cookie (Fetch §3.2.2). The application
// answers it, as it would without a gateway; what follows needs its own right.
func preflight(x *Exchange) bool {
	return x.Method == "OPTIONS" && x.Body == nil && x.Header.Has("Access-Control-Request-Method") && corsOrigin(x) != ""
}

// readable lets the page that asked read a refusal of the gateway's.
func readable(x *Exchange, h exchange.Header) exchange.Header {
	if o := corsOrigin(x); o != "" {
		h.Add("Access-Control-Allow-Origin", o)
		h.Add("Access-Control-Allow-Credentials", "true")
		h.Add("Access-Control-Expose-Headers", "X-Request-Id, Retry-After, WWW-Authenticate")
		h.Add("Vary", "Origin")
	}
	return h
}
