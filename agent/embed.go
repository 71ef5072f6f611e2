package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Dial connects to a resource of the list through the tunnel, by its name or
// its address: the way for programs that embed an agent, in place of a local
// face. network is tcp or udp (with 4 or 6, too); on udp each Read and Write is
// one datagram. It has the signature of [net.Dialer.DialContext]. ctx bounds
// the opening alone. [ExplainError] words its errors.
func (a *Agent) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return nil, fmt.Errorf("dial %s: port %q is not 1 to 65535", address, port)
	}
	to := Target{Port: uint16(n)}
	switch network {
	case "tcp", "tcp4", "tcp6":
		to.Network = "tcp"
	case "udp", "udp4", "udp6":
		to.Network = "udp"
	default:
		return nil, fmt.Errorf("dial %s: network %q is neither tcp nor udp", address, network)
	}
	if to.Addr, err = netip.ParseAddr(host); err != nil {
		to.Name = host
	}
	select {
	case a.slots <- struct{}{}:
	default:
		a.count(&a.overLimit)
		return nil, &Refusal{Reason: reason.FlowLimit, Detail: "max_flows"}
	}
	f, err := a.open(ctx, nil, func(t *routes) (*Resource, reason.Reason) { return t.lookup(to) })
	if err != nil {
		<-a.slots
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	return &dialed{Conn: f.remote, a: a, f: f}, nil
}

// dialed is a flow in the hands of the program that embeds the agent.
type dialed struct {
	net.Conn
	a    *Agent
	f    *flow
	once sync.Once
}

// Read reads; after the agent has cut the flow, its error is a [*Refusal].
func (c *dialed) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, c.why(err)
}

// Write writes; after the agent has cut the flow, its error is a [*Refusal].
func (c *dialed) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	return n, c.why(err)
}

func (c *dialed) why(err error) error {
	if r := reason.Reason(c.f.why.Load()); err != nil && r != reason.OK {
		return &Refusal{Reason: r}
	}
	return err
}

// Close ends the flow.
func (c *dialed) Close() error {
	c.once.Do(func() {
		c.a.drop(c.f)
		<-c.a.slots
	})
	return nil
}

// CloseWrite ends our direction.
func (c *dialed) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// ExplainError returns the code of the refusal in err, such as YM-403, and its
// words in both languages.
func ExplainError(err error) (code string, w Words) {
	r, w := explainError(err)
	return r.Code(), w
}
