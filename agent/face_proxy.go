package agent

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/agent/connect"
	"github.com/yumen-zt/yumen/agent/socks5"
	"github.com/yumen-zt/yumen/internal/reason"
)

// serveSOCKS serves one SOCKS5 connection.
func (a *Agent) serveSOCKS(ctx context.Context, c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(askTimeout)) // fails on a closed connection only, and then so does the read
	if err := socks5.Greet(c); err != nil {
		a.log.Info("local request not understood", zap.String("face", "socks5"), zap.Error(err))
		return
	}
	q, err := socks5.ReadRequest(c)
	if err != nil {
		var re *socks5.RequestError
		if errors.As(err, &re) {
			_ = socks5.WriteReply(c, re.Code, netip.AddrPort{}) // the connection ends in any case
		}
		a.log.Info("local request not understood", zap.String("face", "socks5"), zap.Error(err))
		return
	}
	_ = c.SetDeadline(time.Time{})
	if q.Command == socks5.Associate {
		a.serveAssociate(ctx, c, q.Target)
		return
	}
	to := target("tcp", q.Target.Name, q.Target.Addr, q.Target.Port)
	f, err := a.open(ctx, c, func(t *routes) (*Resource, reason.Reason) { return t.lookup(to) })
	if err != nil {
		r, _ := a.refused("socks5", c, to.String(), err)
		_ = socks5.WriteReply(c, socksCode(r), netip.AddrPort{})
		return
	}
	if err := socks5.WriteReply(c, socks5.Granted, netip.AddrPort{}); err != nil {
		a.drop(f)
		return
	}
	a.relay(f, c)
}

// socksCode gives the code of RFC 1928 for r.
func socksCode(r reason.Reason) socks5.Code {
	switch {
	case denial(r):
		return socks5.NotAllowed
	case r == reason.UpstreamTimeout:
		return socks5.Expired
	case r == reason.UpstreamUnreachable, r == reason.AppOffline:
		return socks5.HostUnreachable
	case r == reason.TunnelClosed, r == reason.PeerTimeout:
		return socks5.NetworkUnreachable
	}
	return socks5.GeneralFailure
}

// serveConnect serves one HTTP CONNECT connection.
func (a *Agent) serveConnect(ctx context.Context, c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(askTimeout))
	br := bufio.NewReaderSize(c, 4096)
	q, err := connect.Read(br)
	if err != nil {
		var re *connect.RequestError
		if errors.As(err, &re) {
			_ = connect.WriteReply(c, re.Status, re.EN, re.ZH) // the connection ends in any case
		}
		a.log.Info("local request not understood", zap.String("face", "http_connect"), zap.Error(err))
		return
	}
	_ = c.SetDeadline(time.Time{})
	to := target("tcp", q.Name, q.Addr, q.Port)
	f, err := a.open(ctx, c, func(t *routes) (*Resource, reason.Reason) { return t.lookup(to) })
	if err != nil {
		r, w := a.refused("http_connect", c, to.String(), err)
		_ = connect.WriteReply(c, connectStatus(r), w.EN, w.ZH)
		return
	}
	if err := connect.WriteReply(c, 200, "", ""); err != nil {
		a.drop(f)
		return
	}
	if n := br.Buffered(); n > 0 {
		early, _ := br.Peek(n) // cannot fail: n bytes are there
		if _, err := f.remote.Write(early); err != nil {
			a.drop(f)
			return
		}
	}
	a.relay(f, c)
}

// connectStatus gives the HTTP status for r. A browser would answer 401 with a
// dialogue that cannot help here, so that denials are 403.
func connectStatus(r reason.Reason) int {
	if denial(r) {
		return 403
	}
	switch s := r.Status(); s {
	case 429, 502, 503, 504:
		return s
	}
	return 502
}
