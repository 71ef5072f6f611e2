package gateway

import (
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/version"
	"github.com/yumen-zt/yumen/wire"
)

// Status is what `yumen status` shows.
type Status struct {
	GatewayID string                   `json:"gateway_id"`
	DeviceID  string                   `json:"device_id"`
	Version   string                   `json:"version"`
	Health    Health                   `json:"health"`
	Started   time.Time                `json:"started"`
	Listen    []string                 `json:"listen"`
	Profile   string                   `json:"crypto_profile"` // gm, mixed or intl
	Protocols map[string]int           `json:"protocols"`      // live sessions by protocol and suite, such as "tlcp ECC_SM4_GCM_SM3"
	Access    access.Stats             `json:"access"`
	Tunnels   int                      `json:"tunnels"`
	Control   *ctlclient.GatewayStatus `json:"control,omitzero"` // nil: lists come from files
	Apps      []AppStatus              `json:"apps"`
	Audit     audit.FileStats          `json:"audit"`
	Alerts    uint64                   `json:"alerts"` // raised since the start, after damping
}

// AppStatus is one application in [Status].
type AppStatus struct {
	ID    string   `json:"app_id"`
	Name  string   `json:"name"`
	Hosts []string `json:"hosts"`
	State string   `json:"state"`
	// Freshness is how old what is in force for it is.
	Freshness access.Freshness     `json:"freshness"`
	InHand    int64                `json:"in_hand"`             // HTTP requests now
	Requests  uint64               `json:"requests"`            // HTTP requests since the start
	Rate      float64              `json:"requests_per_second"` // in the last minute
	Upstreams []apps.UpstreamState `json:"upstreams"`
}

// maxFreshApps is how many applications Table 10 names beside the rest.
const maxFreshApps = 100

// freshness is what Table 10 says of the applications: the state of most of
// them, and which have another.
func (g *Gateway) freshness() wire.Freshness {
	byState := map[access.Freshness][]string{}
	for _, a := range g.site.Load().apps.All() {
		f := g.access.Freshness(g.access.App(a.ID))
		byState[f] = append(byState[f], a.ID)
	}
	var most access.Freshness
	for f, ids := range byState {
		if n := len(byState[most]); len(ids) > n || len(ids) == n && f > most {
			most = f
		}
	}
	out := wire.Freshness{State: most.String(), Apps: map[string]string{}}
	for f, ids := range byState {
		for _, id := range ids {
			if f != most && len(out.Apps) < maxFreshApps {
				out.Apps[id] = f.String()
			}
		}
	}
	return out
}

// worst returns the state of the application whose list is the oldest.
func (g *Gateway) worst() (worst access.Freshness) {
	for _, a := range g.site.Load().apps.All() {
		worst = max(worst, g.access.Freshness(g.access.App(a.ID)))
	}
	return worst
}

// Status returns the gateway's state now.
func (g *Gateway) Status() Status {
	s := Status{
		GatewayID: g.id, DeviceID: g.device, Version: version.String(), Health: g.Health(), Started: g.started,
		Access: g.access.Stats(), Tunnels: len(g.tunnel.Tunnels()), Audit: g.audit.Stats(), Alerts: g.alerts.raised.Load(),
	}
	for _, a := range g.Addresses() {
		s.Listen = append(s.Listen, a.String())
	}
	if g.link != nil {
		c := g.link.Status()
		s.Control = &c
	}
	site := g.site.Load()
	s.Profile, s.Protocols = site.cfg.Crypto.Profile.String(), g.access.Channels()
	now := g.now()
	for _, a := range site.apps.All() {
		as := AppStatus{ID: a.ID, Name: a.Name, Hosts: a.Hosts, State: a.State(now).String(), Freshness: g.access.Freshness(g.access.App(a.ID)), InHand: a.InHand()}
		as.Requests, as.Rate = a.Requests(now)
		for _, u := range a.Upstreams {
			as.Upstreams = append(as.Upstreams, u.Status(now))
		}
		s.Apps = append(s.Apps, as)
	}
	return s
}
