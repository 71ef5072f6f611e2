package carrier

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
)

// Seal shakes hands by TLCP inside c, which agreed on [ALPNSealed]: what the
// tunnel carries is sealed by SM4-GCM whatever c is, under keys of its own. The
// gateway inside must be the one outside; check says so for both. c is closed
// after an error.
func Seal(ctx context.Context, c Conn, by *channel.Client, host string, check func(certid.Identity) error) (Conn, error) {
	in, err := by.Over(ctx, c, host, check)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("seal the tunnel over %s: %w", c.State().Protocol, err), c.Close())
	}
	s, _ := channel.Of(in)
	if s.ALPN != ALPN {
		return nil, errors.Join(fmt.Errorf("seal the tunnel over %s: the gateway does not speak %s inside", c.State().Protocol, ALPN), in.Close())
	}
	s.Protocol = c.State().Protocol + "+" + s.Protocol
	return inside{in, s}, nil
}

// inside is a carrier inside another one. Datagrams take its stream: nothing of a
// flow leaves outside the seal.
type inside struct {
	net.Conn
	state channel.State
}

// State returns what both handshakes agreed on.
func (c inside) State() channel.State { return c.state }
