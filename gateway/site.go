package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/gateway/listen"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy/login"
	"github.com/yumen-zt/yumen/wire"
)

// site is everything that a reload replaces as one: it is built beside the old
// one, and on any error the old one stays.
type site struct {
	cfg        *Config
	keys       *keystore.Store
	apps       *apps.Registry
	login      *login.Login // nil: no sign-in of browsers
	faces      *listen.Faces
	revocation *revocation // of client certificates
	ceiling    []wire.Policy
	ends       map[string]time.Time // of the certificates, by where they are
}

// newSite builds the site of cfg; old is the one that it will replace.
func (g *Gateway) newSite(cfg *Config, old *site) (*site, error) {
	s := &site{cfg: cfg, keys: g.keys, ceiling: cfg.ceiling()}
	if old != nil {
		keys, id, err := openKeys(cfg)
		if err != nil {
			return nil, err
		}
		if id.Gateway != g.id || id.Device != g.device {
			return nil, fmt.Errorf("keys.dir: the certificate is now that of gateway %s on device %s (a restart is needed)", id.Gateway, id.Device)
		}
		s.keys = keys
	}
	for i := range cfg.Apps {
		t := &cfg.Apps[i].TLS
		for _, key := range []struct{ name, file string }{{"key_file", t.KeyFile}, {"sign_key_file", t.SignKeyFile}, {"enc_key_file", t.EncKeyFile}} {
			if err := private(fmt.Sprintf("apps[%d].tls.%s", i, key.name), key.file); err != nil {
				return nil, err
			}
		}
	}
	ac := apps.Config{
		Apps: cfg.Apps, ConnectTimeout: cfg.ConnectTimeout, Own: g.own, Alerts: g.alerts, Logger: g.log, Registerer: g.registry, Now: g.now,
	}
	if old != nil {
		ac.Previous = old.apps
	}
	var err error
	if s.apps, err = apps.New(ac); err != nil {
		return nil, err
	}
	if cfg.Login != nil {
		lc := *cfg.Login
		lc.Application = func(name string) bool { return s.apps.Host(name) != nil }
		lc.Resolve, lc.Ended, lc.Deny = g.resolve, g.loggedOut, denyPage
		lc.GatewayID, lc.Audit, lc.Logger, lc.Now = g.id, g.audit, g.log, g.now
		if old != nil {
			lc.Previous = old.login
		}
		if s.login, err = login.New(lc); err != nil {
			return nil, err
		}
	}
	if s.faces, s.ends, err = g.newFaces(cfg, s.keys); err != nil {
		return nil, err
	}
	if s.revocation, err = g.newRevocation(&cfg.Revocation, s.keys); err != nil {
		return nil, err
	}
	s.faces.Revoked = s.revocation.lists.Check
	s.faces.Demand = s.demands
	return s, nil
}

// demands reports whether HTTP clients of a host must show a device's
// certificate: where unmanaged browsers are refused, where nobody can sign in
// otherwise, and on the applications' link. A client without a server name is
// asked when every application would.
func (s *site) demands(name string) bool {
	if name == "" {
		return s.login == nil
	}
	if l := s.cfg.AppLink; l != nil {
		if host, err := apps.CanonicalHost(l.Host); err != nil || host == name {
			return true
		}
	}
	if s.login != nil && name == s.login.Host() {
		return false
	}
	a := s.apps.Host(name)
	return a != nil && (a.RefuseBrowser || s.login == nil)
}

// own returns the gateway's listening addresses, which no application may have.
func (g *Gateway) own() []netip.AddrPort {
	var all []netip.AddrPort
	for _, a := range g.Addresses() {
		if ap, err := netip.ParseAddrPort(a.String()); err == nil {
			all = append(all, ap)
		}
	}
	return all
}

// policyApps returns what policies need to know of the applications.
func (s *site) policyApps() []policy.App {
	var out []policy.App
	for _, a := range s.apps.All() {
		out = append(out, policy.App{ID: a.ID, Level: a.Level, RefuseBrowser: a.RefuseBrowser})
	}
	return out
}

// Reload reads the file again and puts the new site in place of the old one.
// On any error the old one stays, and an alert says why.
func (g *Gateway) Reload() error {
	g.reload.Lock()
	defer g.reload.Unlock()
	err := g.tryReload()
	rec := &audit.Record{Time: g.now(), Kind: audit.System, GatewayID: g.id, Object: "reload", Allowed: err == nil, Result: "ok"}
	if err != nil {
		rec.Result, rec.Detail = "refused", err.Error()
		g.alerts.Raise(alert.Alert{Code: alert.ConfigRefused, Reason: reason.Reload, Detail: err.Error()})
	}
	g.audit.Write(rec)
	return err
}

func (g *Gateway) tryReload() error {
	old := g.site.Load()
	s, err := g.nextSite(old)
	if err != nil {
		if l := old.cfg.Lists; l != nil { // a fault of the file must not delay what a list takes away
			err = errors.Join(err, g.lists.fromFiles(old.keys, l))
		}
		return err
	}
	if l := s.cfg.Lists; l != nil {
		if err := g.lists.fromFiles(s.keys, l); err != nil {
			return err
		}
	}
	if err := g.guard.reload(s.cfg); err != nil {
		return err
	}
	if err := g.renewKeys(s); err != nil {
		return err
	}
	// From here on nothing fails. Access first: what the new configuration takes
	// away is cut before anything else sees it.
	g.lists.site(s)
	g.site.Store(s)
	if g.accessLog != nil {
		g.accessLog.Reopen()
	}
	g.proxy.SetApps(s.apps)
	g.tunnel.SetApps(s.apps)
	g.port.SetFaces(s.faces)
	g.cutRevoked(s.revocation)
	select {
	case g.moved <- struct{}{}:
	default: // it has not been looked at since the last one
	}
	if old.login != nil {
		old.login.Close()
	}
	g.tell(notice{Reload: true})
	return g.setLevel(s.cfg) // Load has seen it
}

// renewKeys gives the keys that a reload read to the links that stay. The
// applications' link alone keeps those of the start.
func (g *Gateway) renewKeys(s *site) error {
	dec, err := s.keys.Decrypter(keystore.Enc)
	if err != nil {
		return err
	}
	if g.link != nil && !g.handing.Load() {
		if err := g.link.Renew(s.keys, s.cfg.Crypto.Profile); err != nil {
			return err
		}
	}
	g.hello.Set(dec)
	return nil
}

// nextSite builds the site of the file as it is now.
func (g *Gateway) nextSite(old *site) (*site, error) {
	cfg, err := Load(g.path)
	if err != nil {
		return nil, err
	}
	if err := cfg.restartNeeded(old.cfg); err != nil {
		return nil, err
	}
	return g.newSite(cfg, old)
}

// restartNeeded names the fields that a running gateway cannot change.
func (c *Config) restartNeeded(old *Config) error {
	var errs []error
	fixed := func(path string, same bool) {
		if !same {
			errs = append(errs, fmt.Errorf("%s: changed (a restart is needed)", path))
		}
	}
	fixed("listen", slices.Equal(c.Listen, old.Listen))
	fixed("quic", c.QUIC.same(&old.QUIC))
	fixed("state_dir", c.StateDir == old.StateDir)
	fixed("keys.dir", c.Keys.Dir == old.Keys.Dir)
	fixed("admin.socket", c.Admin.Socket == old.Admin.Socket)
	fixed("metrics.listen", c.Metrics.Listen == old.Metrics.Listen)
	fixed("audit", reflect.DeepEqual(c.Audit, old.Audit))
	fixed("access_log", c.AccessLog == old.AccessLog)
	fixed("limits", c.Limits == old.Limits)
	fixed("forwarders", c.Forwarders.same(&old.Forwarders))
	fixed("name", c.Name == old.Name)
	fixed("crypto.profile", c.Crypto.Profile.String() == old.Crypto.Profile.String()) // links and connections that stand have it
	fixed("proxy.limits", c.Proxy.Limits == old.Proxy.Limits)
	fixed("proxy.assertion_key_file", c.Proxy.AssertionKeyFile == old.Proxy.AssertionKeyFile)
	fixed("proxy.allow_no_sni", c.Proxy.AllowNoSNI == old.Proxy.AllowNoSNI)
	fixed("tunnel", c.Tunnel == old.Tunnel)
	fixed("control", (c.Control == nil) == (old.Control == nil) && (c.Control == nil || *c.Control == *old.Control))
	fixed("app_link", (c.AppLink == nil) == (old.AppLink == nil) && (c.AppLink == nil || *c.AppLink == *old.AppLink))
	fixed("guard", c.Guard.same(old.Guard))
	fixed("login.host", c.loginHost() == old.loginHost())
	return errors.Join(errs...)
}

func (c *Config) loginHost() string {
	if c.Login == nil {
		return ""
	}
	return c.Login.Host
}
