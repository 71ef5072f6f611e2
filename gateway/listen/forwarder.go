package listen

import (
	"errors"
	"net/netip"

	"github.com/yumen-zt/yumen/crypto/hello"
	"github.com/yumen-zt/yumen/internal/proxyproto"
	"github.com/yumen-zt/yumen/internal/reason"
)

// forwarder reports whether connections from a begin with a PROXY header.
func (p *Port) forwarder(a netip.Addr) bool {
	a = a.WithZone("").Unmap()
	for _, n := range p.cfg.Forwarders {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// forwarded reads the PROXY header of a forwarder's connection: from here on it
// is its client's, in limits, log, audit and policy. A forwarder that speaks for
// itself, a health check, stays what it is.
func (p *Port) forwarded(below *meter, c *Conn) error {
	h, err := proxyproto.Read(below)
	if errors.Is(err, proxyproto.ErrMalformed) {
		return fault(reason.ProxyHeader, "%s, of a forwarder (see forwarders.proxy_protocol)", err)
	}
	if err != nil {
		return err
	}
	if !h.Local {
		c.Remote = h.From
	}
	if r := p.half.learn(below.pend, sourceOf(c.Remote.Addr()), p.cfg.Limits.ConnectionsPerSource); r != reason.OK {
		return fault(r, "the client of a forwarder has as many as it may")
	}
	return nil
}

// notForwarder says so when what begins a connection is a PROXY header from
// somebody who may not send one.
func notForwarder(h *hello.Hello, err error) error {
	switch string(h.Raw) {
	case "PROXY", "\r\n\r\n\x00": // the five bytes after which no hello can follow
		return fault(reason.ProxyHeader, "a PROXY header from an address that is no forwarder (see forwarders.proxy_protocol)")
	}
	return err
}
