//go:build !linux

package spa

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// dialSYN is for Linux only.
func dialSYN(context.Context, net.Dialer, netip.AddrPort, []byte) (net.Conn, error) {
	return nil, fmt.Errorf("put a token into a SYN: %w", errors.ErrUnsupported)
}
