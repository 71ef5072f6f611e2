package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

const (
	openTimeout = 15 * time.Second // from the request of a local program to the answer of the gateway
	tunnelWait  = 5 * time.Second  // of it, for a tunnel that is being made anew
)

// flow is one way through the tunnel that is in use.
type flow struct {
	id     uint64
	res    *Resource
	remote net.Conn
	local  io.Closer // what cut resets on this side; set before the relay starts
	why    atomic.Uint32
	once   sync.Once
}

// cut ends f for r at once, on both sides. The first call counts. It does not
// block and is not called under a lock.
func (f *flow) cut(r reason.Reason) {
	f.once.Do(func() {
		f.why.Store(uint32(r))
		f.remote.Close()
		if f.local != nil {
			reset(f.local)
		}
	})
}

// reset closes c so that its peer sees a reset and not an orderly end, where c
// is TCP: an orderly end would look like a complete answer.
func reset(c io.Closer) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = t.SetLinger(0) // best effort: the close follows anyway
	}
	c.Close()
}

// open finds the resource, asks the gateway by Table 12 and registers the flow.
// find is called with the present routes. local is reset when the flow is cut.
// The caller must call drop when the flow has ended.
func (a *Agent) open(ctx context.Context, local io.Closer, find func(*routes) (*Resource, reason.Reason)) (*flow, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if _, why := find(a.currentRoutes()); why != reason.OK && a.signedIn() {
		return nil, &Refusal{Reason: why} // no need to wait for a tunnel
	}
	tun, s, err := a.waitTunnel(ctx)
	if err != nil {
		return nil, err
	}
	res, why := find(a.currentRoutes()) // the list may be another one by now
	if why != reason.OK {
		return nil, &Refusal{Reason: why}
	}
	conn, err := tun.Open(ctx, res.Protocol, &wire.AccessRequest{
		AgentID: a.id.AgentID, UserID: s.userID, DeviceID: a.id.DeviceID, AuthToken: s.token,
		AppID: res.AppID, AppName: res.AppName, IP: res.Addr.Addr().String(), Port: int(res.Addr.Port()),
	})
	if err != nil {
		var no *carrier.RefusedError
		if errors.As(err, &no) && no.Reason == reason.Locked {
			a.hint(200 * time.Millisecond) // the application, or we? the control center knows
		}
		return nil, fmt.Errorf("open flow to %s: %w", res.AppID, err)
	}
	a.noLock()
	f := &flow{res: res, remote: conn, local: local}
	if why := a.register(f, s.userID); why != reason.OK {
		conn.Close()
		return nil, &Refusal{Reason: why}
	}
	return f, nil
}

// register makes f known, so that a change of the list or of the session finds
// it, and then looks whether one has happened since f was asked for.
func (a *Agent) register(f *flow, userID string) reason.Reason {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.session.userID != userID:
		return reason.LoggedOut
	case !a.routes.has(f.res):
		return reason.GrantRevoked
	}
	a.nextFlow++
	f.id = a.nextFlow
	a.flows[f.id] = f
	a.opened++
	return reason.OK
}

// drop forgets f and closes its remote side.
func (a *Agent) drop(f *flow) {
	f.remote.Close()
	a.mu.Lock()
	delete(a.flows, f.id)
	a.mu.Unlock()
}

// cutFlows ends the flows for which cond holds.
func (a *Agent) cutFlows(r reason.Reason, cond func(*flow) bool) {
	var gone []*flow
	a.mu.Lock()
	for _, f := range a.flows {
		if cond(f) {
			gone = append(gone, f)
		}
	}
	a.mu.Unlock()
	for _, f := range gone {
		f.cut(r)
		a.log.Warn("flow closed", zap.String("app_id", f.res.AppID), zap.Stringer("upstream", f.res.Addr), zap.Stringer("reason", r))
	}
	if len(gone) > 0 {
		w := sentence(r, fmt.Sprintf("%d connections closed", len(gone)))
		a.notices.add(Notice{Time: a.cfg.Now(), Kind: "agent", Level: 2, AppID: gone[0].res.AppID, Reason: r.Code(), Words: w})
	}
}

// relay moves bytes both ways until both directions have ended or f is cut, and
// closes both sides. It returns after both copies have ended.
func (a *Agent) relay(f *flow, local net.Conn) {
	done := make(chan error, 2)
	go func() { done <- copyHalf(f.remote, local) }()
	go func() { done <- copyHalf(local, f.remote) }()
	err := <-done
	var gone *mux.ResetError
	if err != nil { // a fault in one direction ends the other, by a reset on both sides
		reset(local)
		if r, ok := f.remote.(interface{ Reset(reason.Reason) bool }); ok && !errors.As(err, &gone) {
			r.Reset(reason.ClientGone)
		}
		f.remote.Close()
	}
	err = errors.Join(err, <-done)
	local.Close()
	a.drop(f)
	if f.why.Load() == 0 && errors.As(err, &gone) && gone.Remote && gone.Reason != reason.TunnelClosed && gone.Reason != reason.UpstreamUnreachable {
		// The gateway ended it: the person learns why, not only that.
		a.log.Warn("flow closed by the gateway", zap.String("app_id", f.res.AppID), zap.Stringer("upstream", f.res.Addr), zap.Stringer("reason", gone.Reason))
		a.notices.add(Notice{Time: a.cfg.Now(), Kind: "gateway", Level: 2, AppID: f.res.AppID, Reason: gone.Reason.Code(), Words: sentence(gone.Reason, "the connection was closed")})
		if gone.Reason > 200 && gone.Reason < 400 {
			a.hint(200 * time.Millisecond)
		}
	}
	if ce := a.log.Check(zap.DebugLevel, "flow ended"); ce != nil {
		ce.Write(zap.String("app_id", f.res.AppID), zap.Error(err))
	}
}

// copyHalf copies one direction and passes its end on.
func copyHalf(dst, src net.Conn) error {
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	if c, ok := dst.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return dst.Close()
}
