package gateway

import (
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/version"
)

// Status is what `yumen status` shows.
type Status struct {
	GatewayID string                   `json:"gateway_id"`
	DeviceID  string                   `json:"device_id"`
	Version   string                   `json:"version"`
	Health    Health                   `json:"health"`
	Started   time.Time                `json:"started"`
	Listen    []string                 `json:"listen"`
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
	now := g.now()
	for _, a := range g.site.Load().apps.All() {
		s.Apps = append(s.Apps, AppStatus{a.ID, a.Name, a.Hosts, a.State(now).String()})
	}
	return s
}
