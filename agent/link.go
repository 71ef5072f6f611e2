package agent

import (
	"context"
	"errors"
	"net"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// Link is the way to the control center: the five messages of clause 9. All
// methods may be called from any goroutine and honour ctx.
type Link interface {
	// Authenticate sends Table 16 and returns Table 18 as it came. The caller
	// judges the reply's code.
	Authenticate(ctx context.Context, m *wire.Authentication) (*wire.AuthenticationReply, error)
	// Resources fetches Tables 19 and 20 and the gateways that serve them.
	Resources(ctx context.Context) (*Grants, error)
	// Status sends Table 21, Alert Table 22.
	Status(ctx context.Context, m *wire.AgentStatus) error
	Alert(ctx context.Context, m *wire.AgentAlert) error
}

// Grants is Table 19 with its extensions.
type Grants struct {
	List     wire.ResourceList
	Extra    []Extra // extensions of List.ResourceList, by index
	Gateways []Gateway
}

// Extra is what the extension `resources` says of the row Index of Table 20
// (Q32).
type Extra struct {
	Index    int
	Hosts    []string
	Protocol string // "tcp" (default) or "udp"
}

// Gateway is one gateway of the resource list.
type Gateway struct {
	ID        string
	Addresses []string // host:port, in the order of preference
	Sign, Enc []byte   // DER certificates: it signs with one, we seal to the other
}

// Hello is what a tunnel says first.
type Hello struct{ AgentID, DeviceID, UserID, Token string }

// Dialer makes tunnels.
type Dialer interface {
	// Dial connects to one address of gw and says h. notices gets every Table
	// 15; it must not block. Dial returns when the gateway has accepted, or an
	// error, a [*RefusedError] when it has refused.
	Dial(ctx context.Context, gw Gateway, addr string, h Hello, notices func(*wire.Notice)) (Tunnel, error)
}

// Tunnel is one open tunnel. Its methods may be called from any goroutine.
type Tunnel interface {
	// Open asks by Table 12 for one flow; network is "tcp" or "udp". A refusal
	// by Table 13 is a [*RefusedError].
	Open(ctx context.Context, network string, m *wire.AccessRequest) (net.Conn, error)
	// Renew sends Table 14.
	Renew(ctx context.Context, m *wire.Renewal) error
	// Done is closed when the tunnel has ended; Err then says why.
	Done() <-chan struct{}
	Err() error
	Close() error
}

// ErrNoDatagrams is returned by Tunnel.Open for "udp" when the tunnel carries
// no datagrams.
var ErrNoDatagrams = errors.New("agent: the tunnel carries no datagrams")

// RefusedError says that the other end refused: by Table 13, Table 18 or at the
// tunnel's hello.
type RefusedError struct {
	Reason reason.Reason
	Result string // the reply's result as it came
}

// Error returns the reason in English.
func (e *RefusedError) Error() string { return "refused: " + Explain(reason.English, e.Result) }
