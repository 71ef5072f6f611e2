package proxy

import (
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

// Conn is one client connection after its handshake.
type Conn = exchange.Conn

// Exchange is one request and its answer, whatever the protocol.
type Exchange = exchange.Exchange

// Header is an ordered list of fields.
type Header = exchange.Header

// Authenticator finds out who sends a request.
//
// Authenticate returns the facts of the subject, or why there is none. It sees
// the request after routing (Host, Path, App are set) and may add fields to
// the answer (x.Add), such as a renewed cookie. It must not read the body.
//
// Challenge answers a request that was refused for want of a subject, or by a
// policy that a new sign-in may satisfy: a redirect to the sign-in for pages,
// 401 for programs. It reports false when it has nothing to say; the proxy
// sends its refusal page then.
//
// Both are called by many goroutines at once.
type Authenticator interface {
	Authenticate(x *Exchange) (policy.Facts, reason.Reason)
	Challenge(x *Exchange, r reason.Reason) bool
}
