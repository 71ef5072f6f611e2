// Package apps is the registry of the applications behind the gateway, and the
// only dialer in it.
//
// Applications stand in the gateway's configuration ([Config], [AppConfig]):
// their host names, their upstreams and their rules. A [Registry] is immutable;
// a reload builds another one beside it. The one thing of an application that
// moves is its state: an application that must prove itself by Table 1 (§6.3.1)
// is offline until it has, and again when its proof has run out. Table 1 never
// changes an address.
//
// [Registry.Dial] checks the address that is really dialed, at each dial, after
// the name has been resolved: loopback, link-local, metadata, unspecified,
// multicast and broadcast addresses and the gateway's own listeners are refused
// in every spelling, unless the application's configuration permits them. A
// name that is pointed at an inner address after the start reaches nothing.
package apps

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// State says whether an application takes requests.
type State uint8

// The two states, as in Table 1.
const (
	Offline State = 0
	Online  State = 1
)

// String returns "online" or "offline".
func (s State) String() string {
	if s == Online {
		return "online"
	}
	return "offline"
}

// App is one registered application. Its exported fields are read only; its
// methods are safe for concurrent use.
type App struct {
	ID            string
	Name          string
	Hosts         []string // canonical, see CanonicalHost
	Upstreams     []*Upstream
	Level         int  // the least level of a sign-in; 0 demands none
	RefuseBrowser bool // the browser device class may not use it
	PublicPaths   []string
	CORSOrigins   []string // origins whose pages may ask here
	HostHeader    string   // the Host that the upstream sees; empty: the client's
	HTTP2         bool     // speak HTTP/2 to the upstreams (gRPC)
	ProxyProtocol bool     // begin connections with a PROXY protocol v2 header: each has one client then
	Origin        bool     // the identity headers and assertion are sent

	AnswerTimeout time.Duration // for the head of an answer; 0: the proxy's
	IdleTimeout   time.Duration // of a body that does not move; 0: the proxy's

	connectTimeout time.Duration // 0: the registry's
	health         HealthConfig
	maxRequests    int64
	inHand         atomic.Int64
	meter          *meter // shared with earlier registries

	allow    []netip.Prefix
	secure   security
	balance  string
	next     atomic.Uint64 // round robin
	demanded bool          // Table 1 is demanded
	until    *atomic.Int64 // UnixNano to which Table 1 holds; shared with earlier registries
}

// IdentityDemanded reports whether the application must prove itself by
// Table 1 before it is online.
func (a *App) IdentityDemanded() bool { return a.demanded }

// SetOnline records that Table 1 holds until t. It does nothing for an
// application that need not prove itself.
func (a *App) SetOnline(t time.Time) { a.until.Store(t.UnixNano()) }

// SetOffline records that the application has gone.
func (a *App) SetOffline() { a.until.Store(0) }

// State returns the application's state at now.
func (a *App) State(now time.Time) State {
	if !a.demanded || now.UnixNano() < a.until.Load() {
		return Online
	}
	return Offline
}

// Public reports whether one of the public paths holds path, canonical: it is
// open to everybody.
func (a *App) Public(path string) bool {
	for _, pub := range a.PublicPaths {
		if prefix, ok := strings.CutSuffix(pub, "*"); ok && strings.HasPrefix(path, prefix) || pub == path {
			return true
		}
	}
	return false
}

// Resource is one address of an application that a tunnel may reach (Table 20).
type Resource struct {
	Network string // "tcp" or "udp"
	Host    string // name or address, as in the upstream's URL
	Port    uint16
}

// Resources returns what tunnels may reach.
func (a *App) Resources() []Resource {
	var out []Resource
	for _, u := range a.Upstreams {
		r := Resource{Network: u.network(), Host: u.Host, Port: u.Port}
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}

// Reach returns the upstream (host:port) that host:port over network stands
// for, and false when it is none of the application's resources. host is
// compared as a canonical name or address. An address of Table 20 may also stand
// for the one upstream of that port whose host is a name: what is dialed is the
// upstream of the configuration, never an address that a message brings.
func (a *App) Reach(network, host string, port uint16) (upstream string, ok bool) {
	h, err := CanonicalHost(host)
	if err != nil {
		return "", false
	}
	var named []string
	for _, u := range a.Upstreams {
		if u.network() != network || u.Port != port {
			continue
		}
		if u.Host == h {
			return u.Addr(), true
		}
		if _, err := netip.ParseAddr(u.Host); err != nil && !slices.Contains(named, u.Addr()) {
			named = append(named, u.Addr())
		}
	}
	if _, err := netip.ParseAddr(h); err != nil || len(named) != 1 {
		return "", false // another name; or it is not said which of two
	}
	return named[0], true
}

// upstream returns the application's upstream with the URL of u, or nil.
func (a *App) upstream(u *Upstream) *Upstream {
	if a == nil {
		return nil
	}
	for _, known := range a.Upstreams {
		if known.Scheme == u.Scheme && known.Host == u.Host && known.Port == u.Port {
			return known
		}
	}
	return nil
}

// Registry is the immutable set of applications of one configuration.
type Registry struct {
	cfg    Config
	all    []*App
	byID   map[string]*App
	byHost map[string]*App
	dialer dialer
}

// ErrNoUpstream is returned when an application has no upstream of the wanted
// kind.
var ErrNoUpstream = errors.New("apps: no upstream of this kind")

// Host returns the application that host (a name with or without port, in any
// case) belongs to, or nil.
func (r *Registry) Host(host string) *App {
	if a, ok := r.byHost[host]; ok {
		return a
	}
	h, err := CanonicalHost(stripPort(host))
	if err != nil {
		return nil
	}
	return r.byHost[h]
}

// ID returns the application with the given appId, or nil.
func (r *Registry) ID(id string) *App { return r.byID[id] }

// All returns every application in the order of the configuration. The slice
// is the caller's.
func (r *Registry) All() []*App { return slices.Clone(r.all) }
