package carrier

import (
	"context"
	"errors"
	"net"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// Client is the agent's end of a tunnel. Make it with [Connect]. Its methods
// may be called from any goroutine.
type Client struct{}

// Connect says hello on conn and returns when the gateway has accepted, or a
// [*RefusedError]. It owns conn from then on.
func Connect(ctx context.Context, conn net.Conn, cfg ClientConfig) (*Client, error) {
	return nil, errors.ErrUnsupported
}

// ClientConfig is what [Connect] needs.
type ClientConfig struct {
	// Hello returns the sealed X.hello envelope that carries h; required.
	Hello func(h wire.TunnelHello) ([]byte, error)
	// Identity is the hello without its key; required.
	Identity wire.TunnelHello
	// Notices gets every Table 15; it must not block. Default: dropped.
	Notices func(*wire.Notice)
}

// Open asks by Table 12 for one flow; network is "tcp" or "udp". A refusal by
// Table 13 is a [*RefusedError].
func (c *Client) Open(ctx context.Context, network string, m *wire.AccessRequest) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}

// Renew sends Table 14 and waits for the reply.
func (c *Client) Renew(ctx context.Context, m *wire.Renewal) error { return errors.ErrUnsupported }

// Done is closed when the tunnel has ended; Err then says why.
func (c *Client) Done() <-chan struct{} { return nil }

// Err returns why the tunnel ended, or nil.
func (c *Client) Err() error { return nil }

// Close ends the tunnel and waits for its goroutine.
func (c *Client) Close() error { return nil }

// RefusedError says that the gateway refused: the hello, Table 12 or Table 14.
type RefusedError struct {
	Reason reason.Reason
	Result string // the reply's result as it came; "" when there was no reply
}

// Error returns the reason.
func (e *RefusedError) Error() string {
	if e.Result != "" {
		return "gateway refused: " + e.Result
	}
	return "gateway refused: " + e.Reason.Result()
}
