package apps

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/yumen-zt/yumen/internal/proxyproto"
)

type sourceKey struct{}

type source struct{ from, to netip.AddrPort }

// WithSource returns a context for [Registry.Dial] that names the client's
// address and the address that it connected to, for the PROXY protocol.
func WithSource(ctx context.Context, from, to netip.AddrPort) context.Context {
	return context.WithValue(ctx, sourceKey{}, source{from, to})
}

func writeProxyHeader(ctx context.Context, c net.Conn) error {
	s, _ := ctx.Value(sourceKey{}).(source)
	if err := c.SetWriteDeadline(time.Now().Add(defaultConnectTimeout)); err != nil {
		return err
	}
	if _, err := c.Write(proxyproto.Append(nil, s.from, s.to)); err != nil {
		return err
	}
	return c.SetWriteDeadline(time.Time{})
}
