package apps

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"time"
)

type sourceKey struct{}

type source struct{ from, to netip.AddrPort }

// WithSource returns a context for [Registry.Dial] that names the client's
// address and the address that it connected to, for the PROXY protocol.
func WithSource(ctx context.Context, from, to netip.AddrPort) context.Context {
	return context.WithValue(ctx, sourceKey{}, source{from, to})
}

const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// proxyHeader returns the PROXY protocol v2 header of a TCP flow: LOCAL when
// the source is not known, else PROXY with IPv4 or, when one of both is IPv6,
// v4-mapped IPv6 addresses.
func proxyHeader(from, to netip.AddrPort) []byte {
	h := append([]byte(proxySignature), 0x20, 0, 0, 0)
	if !from.IsValid() || !to.IsValid() {
		return h
	}
	h[12] |= 1
	if f, t := from.Addr().Unmap(), to.Addr().Unmap(); f.Is4() && t.Is4() {
		h[13] = 0x11
		h = append(append(h, f.AsSlice()...), t.AsSlice()...)
	} else {
		h[13] = 0x21
		f16, t16 := f.As16(), t.As16()
		h = append(append(h, f16[:]...), t16[:]...)
	}
	h = binary.BigEndian.AppendUint16(h, from.Port())
	h = binary.BigEndian.AppendUint16(h, to.Port())
	binary.BigEndian.PutUint16(h[14:], uint16(len(h)-16))
	return h
}

func writeProxyHeader(ctx context.Context, c net.Conn) error {
	s, _ := ctx.Value(sourceKey{}).(source)
	if err := c.SetWriteDeadline(time.Now().Add(defaultConnectTimeout)); err != nil {
		return err
	}
	if _, err := c.Write(proxyHeader(s.from, s.to)); err != nil {
		return err
	}
	return c.SetWriteDeadline(time.Time{})
}
