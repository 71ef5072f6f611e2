package listen

import (
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/failed"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// failed names why there is no connection: in the metric, the log, the audit
// and, over plain HTTP, to the client. c is what is known of it.
func (p *Port) failed(tcp *net.TCPConn, remote netip.AddrPort, c *Conn, err error) {
	if c == nil {
		c = &Conn{}
	}
	r := failed.Reason(err)
	p.metrics.handshake(c.Protocol, r)
	if r == reason.PlainHTTP {
		_ = tcp.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(tcp, plainAnswer) // a courtesy: the connection ends either way
	}
	if r == reason.GuardUnauthorized {
		_ = tcp.SetLinger(0) // as in admit: no word, no goodbye
	} else if r != reason.ClientGone && r != reason.HelloTimeout && r != reason.HandshakeLimit {
		linger(tcp)
	}
	tcp.Close()
	p.report(remote, c, r, err)
}

// tellFailed is failed for a handshake without a socket of its own.
func (p *Port) tellFailed(remote netip.AddrPort, c *Conn, err error) {
	r := failed.Reason(err)
	p.metrics.handshake(c.Protocol, r)
	p.report(remote, c, r, err)
}

// report logs, audits and alerts, within what is bearable.
func (p *Port) report(remote netip.AddrPort, c *Conn, r reason.Reason, err error) {
	if r == reason.ClientGone || r == reason.TLCPPreferred {
		return // a probe or a health check that said nothing; a browser that comes back
	}
	now := p.cfg.Now()
	if ok, missed := p.told.Allow(now); ok {
		p.tell(now, remote, c, r, failed.Describe(err, c.offered), missed)
	} else {
		p.metrics.untold.Inc()
	}
	p.cfg.Alerts.Raise(alert.Alert{Code: alert.HandshakeFaults, Reason: r, Remote: remote.Addr().String(), Detail: c.SNI})
}

// tell writes the log line and the audit record of a failed handshake.
func (p *Port) tell(now time.Time, remote netip.AddrPort, c *Conn, r reason.Reason, detail string, missed int) {
	p.cfg.Logger.Info("handshake failed", zap.Stringer("reason", r), zap.Stringer("protocol", c.Protocol),
		zap.Stringer("remote_addr", remote), zap.String("server_name", c.SNI), zap.String("error", detail), zap.Int("missed", missed))
	if missed > 0 {
		detail += "; " + strconv.Itoa(missed) + " others before it were only counted"
	}
	p.cfg.Audit.Write(&audit.Record{
		Time: now, Kind: audit.Login, GatewayID: p.cfg.GatewayID, Object: c.SNI, Protocol: c.Protocol.String(),
		Remote: remote.String(), Result: r.String(), Code: r, Detail: detail,
	})
}

const plainAnswer = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n" +
	"YM-105 This port speaks TLS and TLCP: use https. 该端口使用 TLS 或国密 TLCP，请通过 https 访问。\n"

// linger lets the client read the alert before the end of the connection: a
// close with bytes unread would throw it away.
func linger(tcp *net.TCPConn) {
	const most, wait = 64 << 10, 250 * time.Millisecond
	_ = tcp.CloseWrite()
	_ = tcp.SetReadDeadline(time.Now().Add(wait))
	_, _ = io.CopyN(io.Discard, tcp, most) // until the client closes, most of the time at once
}
