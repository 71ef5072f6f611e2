package apps

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/internal/alert"
)

// Config is what a [Registry] is built from. The zero value of an optional
// field selects its default.
type Config struct {
	Apps           []AppConfig   `yaml:"apps"`
	ConnectTimeout time.Duration `yaml:"connect_timeout"` // default 2s

	// Own returns the gateway's own listening addresses; no application may
	// reach them. Default: none.
	Own func() []netip.AddrPort `yaml:"-"`
	// Previous is the registry that this one replaces: states are taken over.
	Previous   *Registry             `yaml:"-"`
	Resolver   *net.Resolver         `yaml:"-"` // default net.DefaultResolver
	Alerts     alert.Sink            `yaml:"-"` // default alert.Discard
	Logger     *zap.Logger           `yaml:"-"` // default none
	Registerer prometheus.Registerer `yaml:"-"` // default none
	Now        func() time.Time      `yaml:"-"` // default time.Now
}

// AppConfig is one application in the configuration.
type AppConfig struct {
	ID             string    `yaml:"id"`              // appId, letters and digits, at most 11; required
	Name           string    `yaml:"name"`            // default: the id
	Hosts          []string  `yaml:"hosts"`           // names that browsers use; required for http upstreams
	Upstreams      []string  `yaml:"upstreams"`       // http, https, tcp or udp URLs; required
	Balance        string    `yaml:"balance"`         // "least_connections" (default), "round_robin", or "consistent_hash" by user
	Level          int       `yaml:"level"`           // least level of the sign-in; default 0
	RefuseBrowser  bool      `yaml:"refuse_browser"`  // only enrolled devices; default false
	PublicPaths    []string  `yaml:"public_paths"`    // paths without sign-in: "/health" or "/static/*"; default none
	CORSOrigins    []string  `yaml:"cors_origins"`    // origins whose pages may ask here: their preflights pass without a sign-in; default none
	DemandIdentity bool      `yaml:"demand_identity"` // offline until the application proves itself by Table 1; default false
	AllowAddresses []string  `yaml:"allow_addresses"` // networks that the address rules would refuse
	HostHeader     string    `yaml:"host_header"`     // Host for the upstream; default: the client's
	HTTP2          bool      `yaml:"http2"`           // speak HTTP/2 to the upstreams (gRPC); default false
	ProxyProtocol  bool      `yaml:"proxy_protocol"`  // begin connections with a PROXY protocol v2 header; http: one connection a request; default false
	NoIdentity     bool      `yaml:"no_identity"`     // do not send identity headers; default false
	MaxRequests    int       `yaml:"max_requests"`    // in hand at once, WebSockets included; default 10000
	TLS            TLSConfig `yaml:"tls"`

	Health   HealthConfig   `yaml:"health"`
	Timeouts TimeoutsConfig `yaml:"timeouts"`
}

// TimeoutsConfig bounds the phases of a request to one application.
type TimeoutsConfig struct {
	Connect time.Duration `yaml:"connect"` // default connect_timeout
	Answer  time.Duration `yaml:"answer"`  // for the head of the answer; default proxy.limits.answer_timeout
	Idle    time.Duration `yaml:"idle"`    // of a body that does not move; default proxy.limits.upstream_idle
}

// TLSConfig is how https upstreams are verified.
type TLSConfig struct {
	Protocol     string `yaml:"protocol"`       // tls (default) or tlcp
	CAFile       string `yaml:"ca_file"`        // PEM; default: the system's roots; required for tlcp
	ServerName   string `yaml:"server_name"`    // default: the upstream's host
	CertFile     string `yaml:"cert_file"`      // client certificate for tls, PEM
	KeyFile      string `yaml:"key_file"`       // its key, PEM
	SignCertFile string `yaml:"sign_cert_file"` // client pair for tlcp, PEM
	SignKeyFile  string `yaml:"sign_key_file"`
	EncCertFile  string `yaml:"enc_cert_file"`
	EncKeyFile   string `yaml:"enc_key_file"`
}

const (
	defaultConnectTimeout = 2 * time.Second
	maxApps               = 10_000
	leastConnections      = "least_connections"
	roundRobin            = "round_robin"
	consistentHash        = "consistent_hash"
	defaultMaxRequests    = 10_000
)

var idRule = regexp.MustCompile(`^[0-9A-Za-z]{1,11}$`)

// Validate returns errors.Join of every fault, each named by its YAML path.
func (c *Config) Validate() error {
	var errs []error
	fault := func(path, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", path, fmt.Errorf(format, args...)))
	}
	if c.ConnectTimeout < 0 {
		fault("connect_timeout", "negative")
	}
	if len(c.Apps) > maxApps {
		fault("apps", "%d applications, at most %d", len(c.Apps), maxApps)
	}
	ids, hosts := map[string]int{}, map[string]int{}
	for i := range c.Apps {
		a, at := &c.Apps[i], fmt.Sprintf("apps[%d]", i)
		if !idRule.MatchString(a.ID) {
			fault(at+".id", "%q: 1 to 11 letters and digits", a.ID)
		} else if j, dup := ids[a.ID]; dup {
			fault(at+".id", "%q is also apps[%d]", a.ID, j)
		}
		ids[a.ID] = i
		a.validate(at, fault)
		for k, h := range a.Hosts {
			h, err := CanonicalHost(h)
			if err != nil {
				fault(fmt.Sprintf("%s.hosts[%d]", at, k), "%w", err)
				continue
			}
			if _, err := netip.ParseAddr(h); err == nil {
				fault(fmt.Sprintf("%s.hosts[%d]", at, k), "%q is an address; browsers send no server name for it (use a name)", h)
			}
			if j, dup := hosts[h]; dup {
				fault(fmt.Sprintf("%s.hosts[%d]", at, k), "%q also belongs to apps[%d]", h, j)
			}
			hosts[h] = i
		}
	}
	return errors.Join(errs...)
}

func (a *AppConfig) validate(at string, fault func(path, format string, args ...any)) {
	if len(a.Upstreams) == 0 {
		fault(at+".upstreams", "none (add one, such as https://10.1.2.3:8443)")
	}
	kinds := map[string]bool{}
	for i, s := range a.Upstreams {
		u, err := parseUpstream(s)
		if err != nil {
			fault(fmt.Sprintf("%s.upstreams[%d]", at, i), "%w", err)
			continue
		}
		kinds[u.Scheme] = true
	}
	if (kinds["http"] || kinds["https"]) && len(a.Hosts) == 0 {
		fault(at+".hosts", "none (an http application needs a name)")
	}
	if kinds["http"] && kinds["https"] {
		fault(at+".upstreams", "http and https together (use one)")
	}
	if a.ProxyProtocol && kinds["udp"] && len(kinds) == 1 {
		fault(at+".proxy_protocol", "udp upstreams alone (it holds for tcp)")
	}
	if a.ProxyProtocol && a.HTTP2 {
		fault(at+".proxy_protocol", "with http2 requests of several clients share a connection (remove one of both)")
	}
	switch b := a.Balance; b {
	case "", leastConnections, roundRobin, consistentHash:
	default:
		fault(at+".balance", "%q: %s, %s or %s", b, leastConnections, roundRobin, consistentHash)
	}
	if a.MaxRequests < 0 {
		fault(at+".max_requests", "negative")
	}
	if t := a.Timeouts; t.Connect < 0 || t.Answer < 0 || t.Idle < 0 {
		fault(at+".timeouts", "negative")
	}
	a.Health.validate(at+".health", kinds, fault)
	if a.Level < 0 {
		fault(at+".level", "negative")
	}
	for i, p := range a.PublicPaths {
		if !strings.HasPrefix(p, "/") || strings.Contains(strings.TrimSuffix(p, "*"), "*") || strings.ContainsAny(p, "%\\;?#") {
			fault(fmt.Sprintf("%s.public_paths[%d]", at, i), "%q: a plain path that starts with / and has at most one *, at its end", p)
		}
	}
	for i, o := range a.CORSOrigins {
		if u, err := url.Parse(o); err != nil || u.Scheme != "https" || u.Host == "" || o != "https://"+strings.ToLower(u.Host) {
			fault(fmt.Sprintf("%s.cors_origins[%d]", at, i), "%q: an origin such as https://portal.example.com, without a path", o)
		}
	}
	for i, s := range a.AllowAddresses {
		if _, err := parsePrefix(s); err != nil {
			fault(fmt.Sprintf("%s.allow_addresses[%d]", at, i), "%w", err)
		}
	}
	a.TLS.validate(at+".tls", fault)
	if h := a.HostHeader; h != "" && !hostHeaderRule.MatchString(h) {
		fault(at+".host_header", "%q: a host name, or host:port", h)
	}
}

var hostHeaderRule = regexp.MustCompile(`^[0-9A-Za-z.\-\[\]:]+$`)

// New validates cfg, reads the files that it names and returns the registry.
func New(cfg Config) (*Registry, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("build application registry: %w", err)
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = defaultConnectTimeout
	}
	if cfg.Alerts == nil {
		cfg.Alerts = alert.Discard
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	r := &Registry{cfg: cfg, byID: map[string]*App{}, byHost: map[string]*App{}}
	if err := r.dialer.init(&cfg); err != nil {
		return nil, err
	}
	for i := range cfg.Apps {
		a, err := newApp(&cfg.Apps[i], cfg.Previous, cfg.Now())
		if err != nil {
			return nil, fmt.Errorf("build application registry: apps[%d]: %w", i, err)
		}
		r.all = append(r.all, a)
		r.byID[a.ID] = a
		for _, h := range a.Hosts {
			r.byHost[h] = a
		}
	}
	r.cfg.Previous = nil // only the states are kept of it
	return r, nil
}

func newApp(c *AppConfig, previous *Registry, now time.Time) (*App, error) {
	a := &App{
		ID: c.ID, Name: c.Name, Level: c.Level, RefuseBrowser: c.RefuseBrowser,
		PublicPaths: c.PublicPaths, CORSOrigins: c.CORSOrigins, HostHeader: c.HostHeader, HTTP2: c.HTTP2,
		ProxyProtocol: c.ProxyProtocol, Origin: !c.NoIdentity,
		AnswerTimeout: c.Timeouts.Answer, IdleTimeout: c.Timeouts.Idle, connectTimeout: c.Timeouts.Connect,
		balance: c.Balance, health: c.Health, maxRequests: int64(c.MaxRequests), demanded: c.DemandIdentity, until: new(atomic.Int64),
	}
	a.meter = new(meter)
	if a.maxRequests == 0 {
		a.maxRequests = defaultMaxRequests
	}
	if a.Name == "" {
		a.Name = a.ID
	}
	var old *App
	if previous != nil {
		if old = previous.ID(a.ID); old != nil {
			a.until, a.meter = old.until, old.meter
		}
	}
	for _, h := range c.Hosts {
		h, _ := CanonicalHost(h) // Validate has seen it
		a.Hosts = append(a.Hosts, h)
	}
	for _, s := range c.AllowAddresses {
		p, _ := parsePrefix(s) // Validate has seen it
		a.allow = append(a.allow, p)
	}
	for _, s := range c.Upstreams {
		u, _ := parseUpstream(s) // Validate has seen it
		if known := old.upstream(u); known != nil {
			u = known
			if !a.health.on() {
				u.down.Store(false) // nobody would bring it back
			}
		}
		a.Upstreams = append(a.Upstreams, u)
	}
	var err error
	a.secure, err = c.TLS.load(now)
	return a, err
}

var defaultPorts = map[string]uint16{"http": 80, "https": 443}

func parseUpstream(s string) (*Upstream, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", s, err)
	}
	switch u.Scheme {
	case "http", "https", "tcp", "udp":
	default:
		return nil, fmt.Errorf("%q: the scheme must be http, https, tcp or udp", s)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" || u.Path != "" && u.Path != "/" {
		return nil, fmt.Errorf("%q: only scheme, host and port are accepted", s)
	}
	host, err := CanonicalHost(u.Hostname())
	if err != nil {
		return nil, fmt.Errorf("%q: %w", s, err)
	}
	port := defaultPorts[u.Scheme]
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%q: the port must be 1 to 65535", s)
		}
		port = uint16(n)
	}
	if port == 0 {
		return nil, fmt.Errorf("%q: a port is needed", s)
	}
	up := &Upstream{Scheme: u.Scheme, Host: host, Port: port}
	up.place = placeOf(up.String())
	return up, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q: a network such as 127.0.0.0/8 is needed", s)
	}
	return p.Masked(), nil
}
