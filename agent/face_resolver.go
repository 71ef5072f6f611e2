package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// The resolver face answers the names of the resource list by DNS (RFC 1035)
// with the addresses of Table 20, for programs that resolve names before they
// speak to a proxy. It asks nobody: every other name is refused, so that a
// system resolver that was told of it goes on to the next, and no name of the
// user's leaves by this way.

const (
	resolverTTL  = 5 // seconds: the list may change at any time
	maxQuery     = 4 << 10
	resolverIdle = 10 * time.Second // a TCP connection without a query
)

// resolveDatagrams answers queries by UDP until pc is closed.
func (a *Agent) resolveDatagrams(ctx context.Context, pc *net.UDPConn) {
	local := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	buf := make([]byte, maxQuery)
	for {
		n, from, err := pc.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return
		}
		if err != nil {
			continue // an ICMP answer to something that was sent before
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if !a.ownDatagram(local, from) {
			a.count(&a.strangers)
			continue
		}
		if out := a.resolve(buf[:n], 512); out != nil {
			if _, err := pc.WriteToUDPAddrPort(out, from); err != nil {
				a.count(&a.droppedDatagrams)
			}
		}
	}
}

// serveResolver answers queries on one TCP connection (RFC 7766).
func (a *Agent) serveResolver(_ context.Context, c net.Conn) {
	var head [2]byte
	buf := make([]byte, maxQuery)
	for {
		_ = c.SetDeadline(time.Now().Add(resolverIdle)) // fails on a closed connection only, and then so does the read
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(head[:]))
		if n > maxQuery {
			return
		}
		if _, err := io.ReadFull(c, buf[:n]); err != nil {
			return
		}
		out := a.resolve(buf[:n], 65535)
		if out == nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
			return
		}
	}
}

// resolve returns the answer to one query, of at most limit bytes; nil when
// the query is not worth one.
func (a *Agent) resolve(query []byte, limit int) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response {
		return nil
	}
	out := dnsmessage.Header{ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, Authoritative: true}
	q, err := p.Question()
	switch {
	case err != nil:
		out.RCode = dnsmessage.RCodeFormatError
		return pack(out, nil, nil)
	case h.OpCode != 0:
		out.RCode = dnsmessage.RCodeNotImplemented
		return pack(out, &q, nil)
	}
	addrs, known := a.currentRoutes().addresses(q.Name.String())
	if !known || q.Class != dnsmessage.ClassINET {
		out.RCode, out.Authoritative = dnsmessage.RCodeRefused, false
		return pack(out, &q, nil)
	}
	var match []netip.Addr
	for _, ip := range addrs {
		if ip.Is4() && (q.Type == dnsmessage.TypeA || q.Type == dnsmessage.TypeALL) || ip.Is6() && (q.Type == dnsmessage.TypeAAAA || q.Type == dnsmessage.TypeALL) {
			match = append(match, ip)
		}
	}
	b := pack(out, &q, match)
	if len(b) > limit {
		out.Truncated = true
		b = pack(out, &q, nil)
	}
	return b
}

// pack builds an answer; it is nil when a part of it cannot be written.
func pack(h dnsmessage.Header, q *dnsmessage.Question, addrs []netip.Addr) []byte {
	m := dnsmessage.Message{Header: h}
	if q != nil {
		m.Questions = []dnsmessage.Question{*q}
	}
	for _, ip := range addrs {
		rh := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: resolverTTL}
		if ip.Is4() {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: rh, Body: &dnsmessage.AResource{A: ip.As4()}})
		} else {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: rh, Body: &dnsmessage.AAAAResource{AAAA: ip.As16()}})
		}
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}
