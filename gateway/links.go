package gateway

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/apps/link"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy"
	"github.com/yumen-zt/yumen/proxy/login"
	"github.com/yumen-zt/yumen/tunnel"
)

// handlers are the gateway's own pages in the proxy: the sign-in on its host
// and below its prefix on every application's, and the applications' link.
func (g *Gateway) handlers(cfg *Config) ([]proxy.Handler, error) {
	signIn := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l := g.site.Load().login; l != nil {
			l.ServeHTTP(w, r)
			return
		}
		denyPage(w, r, reason.HostUnknown, "")
	})
	var all []proxy.Handler
	if cfg.Login != nil {
		all = append(all, proxy.Handler{Host: g.site.Load().login.Host(), Prefix: "/", Handler: signIn})
	}
	all = append(all, proxy.Handler{Prefix: login.Prefix, Handler: signIn})
	if cfg.AppLink == nil {
		return all, nil
	}
	var err error
	g.appLink, err = link.New(link.Config{
		GatewayID: g.id, Keys: g.keys, Apps: func() *apps.Registry { return g.site.Load().apps }, Peer: peerOf,
		Audit: g.audit, Alerts: g.alerts, Logger: g.log, Now: g.now,
	})
	if err != nil {
		return nil, err
	}
	host, err := apps.CanonicalHost(cfg.AppLink.Host)
	if err != nil {
		return nil, fmt.Errorf("app_link.host: %w", err)
	}
	return append(all, proxy.Handler{Host: host, Prefix: "/", Handler: g.appLink}), nil
}

func peerOf(r *http.Request) *x509.Certificate {
	if x := proxy.ExchangeOf(r); x != nil {
		return x.Conn.Peer
	}
	return nil
}

// watchApps notices applications whose Table 1 has run out.
func (g *Gateway) watchApps(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			g.appLink.Check()
		}
	}
}

// resolve asks the control center whose account this is (Q26).
func (g *Gateway) resolve(ctx context.Context, issuer, subject string) (string, reason.Reason) {
	if g.link == nil {
		return "", reason.SubjectUnmapped
	}
	return g.link.Resolve(ctx, issuer, subject)
}

// loggedOut ends a session everywhere: its id opens nothing any more, and what
// flows in it, on whatever device, is cut; here at once, and at the other
// gateways by the control center.
func (g *Gateway) loggedOut(sessionID string, expires time.Time) {
	revoke := []access.Revocation{{SessionID: sessionID}}
	g.tell(notice{Narrow: &access.Delta{Revoke: revoke}})
	g.access.Narrow(access.Delta{Revoke: revoke})
	if heir := g.heir.Load(); heir != nil {
		n := notice{LogOut: &logOutNotice{sessionID, expires}}
		if _, err := heir.Write(n.line()); err != nil {
			g.log.Error("log-out not told to the process that has taken over, the session goes on there", zap.String("session_id", sessionID), zap.Error(err))
		}
		return
	}
	g.remember(revoke)
	if g.link == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := g.link.EndSession(ctx, sessionID, expires); err != nil {
		g.log.Error("log-out not told to the control center, the session goes on at other gateways", zap.String("session_id", sessionID), zap.Error(err))
	}
}

// denyPage is the refusal page of the sign-in, in both languages, and JSON for
// programs.
func denyPage(w http.ResponseWriter, r *http.Request, why reason.Reason, detail string) {
	why = why.Public()
	h := w.Header()
	for _, f := range proxy.PageHeader() {
		h.Set(f.Name, f.Value)
	}
	request := ""
	if x := proxy.ExchangeOf(r); x != nil {
		request = x.ID
		if proxy.WantsJSON(x) {
			h.Set("Content-Type", "application/json; charset=utf-8")
			w.WriteHeader(why.Status())
			_ = json.NewEncoder(w).Encode(map[string]string{ // the client that went away needs no answer
				"code": why.Code(), "reason": why.String(), "text": why.Text(reason.English), "request_id": request,
			})
			return
		}
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	status := why.Status()
	if why == reason.LoggedOut {
		status = http.StatusOK
	}
	w.WriteHeader(status)
	e := html.EscapeString
	fmt.Fprintf(w, `<!doctype html><html lang="zh-CN"><meta charset="utf-8"><title>%[1]s</title>
<h1>%[2]s</h1><p>%[3]s</p><h1 lang="en">%[4]s</h1><p lang="en">%[5]s</p>
<p><code>%[1]s</code> · 请求编号 <span lang="en">Request</span> <code>%[6]s</code> %[7]s</p></html>`,
		why.Code(), e(why.Text(reason.Chinese)), e(why.Advice(reason.Chinese)),
		e(why.Text(reason.English)), e(why.Advice(reason.English)), e(request), e(detail))
}

// newTunnel makes the tunnels' end.
func (g *Gateway) newTunnel(cfg *Config) (*tunnel.Server, error) {
	roots, err := g.keys.Root(keystore.MessageRoot)
	if err != nil {
		return nil, err
	}
	dec, err := g.keys.Decrypter(keystore.Enc)
	if err != nil {
		return nil, err
	}
	g.hello.Set(dec)
	hello, err := envelope.NewReceiver(envelope.Config{
		ID: g.id, Decrypter: &g.hello, RequireSealed: true, Now: g.now, Resolve: envelope.PartySigner(roots, g.now),
	})
	if err != nil {
		return nil, err
	}
	return tunnel.New(tunnel.Config{
		GatewayID: g.id, DeviceID: g.device, Access: g.access, Apps: g.site.Load().apps, Hello: hello, Limits: cfg.Tunnel,
		Audit: g.audit, Alerts: g.alerts, Logger: g.log, Registerer: g.registry, Now: g.now,
	})
}
