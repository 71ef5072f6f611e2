package agent

import (
	"context"
	"net"

	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/wire"
)

// Link is the way to the control center: the messages of clause 9. Its methods
// may be called from any goroutine. [ctlclient.Agent] is the real one.
type Link interface {
	// Run keeps the link until ctx ends: identity reports, status (Table 21)
	// and resources at least every 60 s while a user is signed in.
	Run(ctx context.Context) error
	// Login signs in by Table 16, by userId or by name; the token says who it
	// is. A refusal by Table 18 is a [*ctlclient.RefusedError].
	Login(ctx context.Context, name string, method int, factors []wire.Factor) (ctlclient.Token, error)
	// Logout ends the reports.
	Logout()
	// FetchResources fetches Table 19 now.
	FetchResources(ctx context.Context) (*ctlclient.Resources, error)
	// Raise sends Table 22. It never blocks.
	Raise(a alert.Alert)
	// SendAlert sends Table 22 and waits for the answer.
	SendAlert(ctx context.Context, m *wire.AgentAlert) error
	// ReportNow sends the next report at once. It never blocks.
	ReportNow()
	// Status returns the state of the link.
	Status() ctlclient.AgentStatus
}

// Events is what a [Link] tells the agent. The functions never block.
type Events struct {
	Token     func(ctlclient.Token)
	Resources func(*ctlclient.Resources)
	SignedOut func(error)
}

// Dialer makes tunnels.
type Dialer interface {
	// Dial connects to one address of gw and says hello. notices gets every
	// Table 15; it must not block. Dial returns when the gateway has accepted;
	// a refusal is a [*carrier.RefusedError].
	Dial(ctx context.Context, gw wire.GatewayRef, addr string, hello wire.TunnelHello, notices func(*wire.Notice)) (Tunnel, error)
}

// Tunnel is one open tunnel. Its methods may be called from any goroutine.
// [carrier.Client] is the real one.
type Tunnel interface {
	// Open asks by Table 12 for one flow; network is "tcp" or "udp". A refusal
	// by Table 13 is a [*carrier.RefusedError].
	Open(ctx context.Context, network string, m *wire.AccessRequest) (net.Conn, error)
	// Renew sends Table 14 and waits for the reply.
	Renew(ctx context.Context, m *wire.Renewal) error
	// Carrier says by which protocol and suite the tunnel runs.
	Carrier() channel.State
	// Done is closed when the tunnel has ended; Err then says why.
	Done() <-chan struct{}
	Err() error
	Close() error
}
