package gateway

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/gateway/listen"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/proxy"
	"github.com/yumen-zt/yumen/proxy/login"
	"github.com/yumen-zt/yumen/tunnel"
	"github.com/yumen-zt/yumen/wire"
)

// Config is the gateway's configuration file. Paths are relative to the file's
// folder. The zero value of an optional field selects its default.
type Config struct {
	ID       string `yaml:"id"`        // gatewayId; default: the one of the enrolled certificate
	DeviceID string `yaml:"device"`    // deviceId; default: as above
	Name     string `yaml:"name"`      // deviceName of Table 4; default: the host name
	StateDir string `yaml:"state_dir"` // lists, versions, audit; default state

	Listen       []string          `yaml:"listen"`       // addresses of the one port; default [":8443"]
	QUIC         QUICConfig        `yaml:"quic"`         // its UDP half: HTTP/3 and tunnels
	Keys         KeysConfig        `yaml:"keys"`         // what `yumen enroll` wrote
	Certificates []CertificateFile `yaml:"certificates"` // for the hosts of applications; default: the key "tls"
	Crypto       CryptoConfig      `yaml:"crypto"`       // which protocols are served
	Revocation   RevocationConfig  `yaml:"revocation"`   // of client certificates; default: no lists
	Limits       listen.Limits     `yaml:"limits"`       // before authentication
	Forwarders   ForwardersConfig  `yaml:"forwarders"`   // whose word on the client's address counts; default: nobody's

	Control *ControlConfig         `yaml:"control"` // the control center; default: lists come from files
	Outbox  ctlclient.OutboxConfig `yaml:"outbox"`  // reports that wait for the control center
	Lists   *ListsConfig           `yaml:"lists"`   // signed lists from files, instead of a control center
	Login   *login.Config          `yaml:"login"`   // sign-in of browsers; default: client certificates only

	Apps           []apps.AppConfig `yaml:"apps"`
	ConnectTimeout time.Duration    `yaml:"connect_timeout"` // to an application; default 2s
	Ceiling        []CeilingPolicy  `yaml:"ceiling"`         // policies that no control center can remove
	Staleness      StalenessConfig  `yaml:"staleness"`       // what is allowed while the control center is away
	AppLink        *AppLinkConfig   `yaml:"app_link"`        // Tables 1 and 2; default: none
	Proxy          proxy.Config     `yaml:"proxy"`
	Tunnel         tunnel.Limits    `yaml:"tunnel"`

	Guard   *GuardConfig  `yaml:"guard"` // in front of the port; default: none
	Admin   AdminConfig   `yaml:"admin"`
	Metrics MetricsConfig `yaml:"metrics"`
	Audit   AuditConfig   `yaml:"audit"`
	Log     LogConfig     `yaml:"log"`

	AccessLog audit.AccessLogConfig `yaml:"access_log"` // every HTTP request; default: none

	dir string // of the file
}

// KeysConfig says where the gateway's keys are.
type KeysConfig struct {
	Dir            string `yaml:"dir"`             // default keys
	PassphraseFile string `yaml:"passphrase_file"` // mode 0600; default passphrase
}

// CertificateFile is one certificate for applications' hosts, chosen by the
// names in it: for TLS, for TLCP, or for both.
type CertificateFile struct {
	CertFile     string `yaml:"cert_file"`      // PEM, leaf first
	KeyFile      string `yaml:"key_file"`       // PEM, mode 0600
	SignCertFile string `yaml:"sign_cert_file"` // of the TLCP pair: PEM, leaf first
	SignKeyFile  string `yaml:"sign_key_file"`
	EncCertFile  string `yaml:"enc_cert_file"`
	EncKeyFile   string `yaml:"enc_key_file"`
}

func (f *CertificateFile) paths() []*string {
	return []*string{&f.CertFile, &f.KeyFile, &f.SignCertFile, &f.SignKeyFile, &f.EncCertFile, &f.EncKeyFile}
}

// CryptoConfig says which protocols and algorithms there are.
type CryptoConfig struct {
	Profile    profile.Profile `yaml:"profile"`     // gm, mixed or intl; default mixed
	PreferTLCP bool            `yaml:"prefer_tlcp"` // end TLS with browsers that can speak TLCP, so that they do; default false
	// SealTunnels refuses tunnels over TLS and QUIC that do not run inside TLCP;
	// default false.
	SealTunnels bool `yaml:"seal_tunnels"`
}

// ControlConfig is the link to a control center.
type ControlConfig struct {
	URL     string `yaml:"url"`     // base URL, such as https://control.example:8444; required
	Address string `yaml:"address"` // host:port to dial instead of the URL's; optional
}

// ListsConfig names signed list files; they are read at start and on reload.
type ListsConfig struct {
	Grants   string `yaml:"grants"`   // required
	Policies string `yaml:"policies"` // required
}

// CeilingPolicy is a policy of the local configuration.
type CeilingPolicy struct {
	Type  string `yaml:"type"`  // such as ipallow
	Data  string `yaml:"data"`  // such as 10.0.0.0/8
	Scope string `yaml:"scope"` // such as APP00000001 or USR00000001/APP00000001; default: everything
}

// StalenessConfig says how long what is in force counts without a word from
// the control center, for all applications and for some of their own.
type StalenessConfig struct {
	access.Staleness `yaml:",inline"`
	Apps             map[string]access.Staleness `yaml:"apps"` // by appId; a field that is not set is that of all
}

func (c *StalenessConfig) isZero() bool {
	return c.Staleness == (access.Staleness{}) && len(c.Apps) == 0
}

// AppLinkConfig is the interface of applications (clause 6.3).
type AppLinkConfig struct {
	Host string `yaml:"host"` // server name under which applications reach the gateway, with their certificate; required
}

// AdminConfig is the local face for operators.
type AdminConfig struct {
	Socket string `yaml:"socket"` // mode 0600; default state_dir/admin.sock
}

// MetricsConfig is the face for monitoring: /metrics and /healthz, plain HTTP.
type MetricsConfig struct {
	Listen string `yaml:"listen"` // loopback address; default 127.0.0.1:9464; "off": none
}

// LogConfig is the gateway's own log.
type LogConfig struct {
	Level string `yaml:"level"` // debug, info (default), warn or error
}

// Load reads, completes and checks the configuration file at path.
func Load(path string) (*Config, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read gateway configuration: %w", err)
	}
	if fi, err := os.Stat(path); err == nil && fi.Mode().Perm()&0o002 != 0 {
		return nil, fmt.Errorf("read gateway configuration %s: mode %v lets everybody write it (run: chmod o-w %s)", path, fi.Mode().Perm(), path)
	}
	c := &Config{}
	d := yaml.NewDecoder(bytes.NewReader(raw), yaml.Strict())
	switch err := d.Decode(c); {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("read gateway configuration %s: it is empty", path)
	case err != nil:
		return nil, fmt.Errorf("read gateway configuration %s: %w", path, err)
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read gateway configuration %s: a second document follows (remove the --- line)", path)
	}
	if c.dir, err = filepath.Abs(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("read gateway configuration: %w", err)
	}
	c.complete()
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("check gateway configuration %s:\n%w", path, err)
	}
	return c, nil
}

// complete sets defaults and makes paths absolute.
func (c *Config) complete() {
	at := func(p *string, def string) {
		*p = cmp.Or(*p, def)
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(c.dir, *p)
		}
	}
	at(&c.StateDir, "state")
	at(&c.Keys.Dir, "keys")
	at(&c.Keys.PassphraseFile, "passphrase")
	at(&c.Admin.Socket, filepath.Join(c.StateDir, "admin.sock"))
	at(&c.Outbox.Dir, filepath.Join(c.StateDir, "outbox"))
	at(&c.Audit.Dir, filepath.Join(c.StateDir, "audit"))
	at(&c.Proxy.AssertionKeyFile, filepath.Join(c.StateDir, "assertion.key"))
	at(&c.AccessLog.File, "")
	at(&c.Audit.File, filepath.Join(c.StateDir, "audit.jsonl"))
	at(&c.Audit.Rights.Socket, "")
	if c.Guard != nil {
		c.Guard.complete()
		for i := range c.Guard.Blocklists {
			at(&c.Guard.Blocklists[i], "")
		}
	}
	for i := range c.Certificates {
		for _, p := range c.Certificates[i].paths() {
			at(p, "")
		}
	}
	for i := range c.Revocation.Files {
		at(&c.Revocation.Files[i], "")
	}
	if c.Lists != nil {
		at(&c.Lists.Grants, "")
		at(&c.Lists.Policies, "")
	}
	if c.Login != nil {
		at(&c.Login.CookieKeyFile, filepath.Join(c.StateDir, "cookie.key"))
		at(&c.Login.ClientSecretFile, "")
		at(&c.Login.CAFile, "")
	}
	for i := range c.Apps {
		t := &c.Apps[i].TLS
		for _, p := range []*string{&t.CAFile, &t.CertFile, &t.KeyFile, &t.SignCertFile, &t.SignKeyFile, &t.EncCertFile, &t.EncKeyFile} {
			at(p, "")
		}
	}
	if len(c.Listen) == 0 {
		c.Listen = []string{":8443"}
	}
	c.Metrics.Listen = cmp.Or(c.Metrics.Listen, "127.0.0.1:9464")
	c.Log.Level = cmp.Or(c.Log.Level, "info")
}

// Validate returns every fault of c, each named by its YAML path.
func (c *Config) Validate() error {
	var errs []error
	fault := func(path, format string, args ...any) {
		errs = append(errs, fmt.Errorf("  %s: %w", path, fmt.Errorf(format, args...)))
	}
	for _, id := range []struct{ path, v string }{{"id", c.ID}, {"device", c.DeviceID}} {
		if n := len(id.v); n > 11 {
			fault(id.path, "%q has %d characters, at most 11", id.v, n)
		}
	}
	for i, a := range c.Listen {
		if !isAddress(a) {
			fault(fmt.Sprintf("listen[%d]", i), "%q is no address such as :8443 or [::1]:8443", a)
		}
	}
	lines := func(prefix string, err error) { // of an errors.Join whose lines begin with a path
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				errs = append(errs, errors.New("  "+prefix+line))
			}
		}
	}
	lines("limits.", c.Limits.Validate())
	c.Forwarders.faults(fault)
	for i, f := range c.Certificates {
		c.certificateFaults(fmt.Sprintf("certificates[%d]", i), f, fault)
	}
	if err := c.Crypto.Profile.Check(); err != nil {
		fault("crypto.profile", "%w", err)
	}
	c.quicFaults(fault)
	switch {
	case c.Control == nil && c.Lists == nil:
		fault("control", "missing (give control.url, or lists.grants and lists.policies)")
	case c.Control != nil && c.Lists != nil:
		fault("lists", "cannot stand beside control (one of them decides)")
	case c.Control != nil:
		if u, err := url.Parse(c.Control.URL); err != nil || u.Scheme != "https" || u.Host == "" {
			fault("control.url", "%q is no https URL such as https://control.example:8444", c.Control.URL)
		}
		if a := c.Control.Address; a != "" && !isAddress(a) {
			fault("control.address", "%q is no address such as 10.0.0.1:8444", a)
		}
	case c.Lists != nil && (c.Lists.Grants == "" || c.Lists.Policies == ""):
		fault("lists", "grants and policies are both needed")
	}
	if c.Login != nil {
		lines("", c.Login.Validate())
		if c.Control == nil && c.Login.Map != "claim" {
			fault("login.map", "without a control center nobody maps identities (set map: claim)")
		}
	}
	reg := apps.Config{Apps: c.Apps, ConnectTimeout: c.ConnectTimeout}
	lines("", reg.Validate())
	c.ownHosts(fault)
	lines("proxy.", c.Proxy.Validate())
	if err := c.Tunnel.Validate(); err != nil {
		fault("tunnel", "%w", err)
	}
	c.ceilingFaults(fault)
	c.stalenessFaults(fault, lines)
	if c.Guard != nil {
		_, err := c.Guard.bpf(nil)
		lines("guard.", err)
	}
	c.Audit.faults(fault)
	switch c.Audit.Send {
	case "", "off":
	case "ends", "all":
		if c.Control == nil {
			fault("audit.send", "there is no control center to send to (set control.url, or off)")
		}
	default:
		fault("audit.send", "%q is none of off, ends, all", c.Audit.Send)
	}
	lines("", c.Outbox.Validate("outbox."))
	if err := c.AccessLog.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("  %w", err))
	}
	if a := c.Metrics.Listen; a != "off" {
		host, _, err := net.SplitHostPort(a)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			fault("metrics.listen", "%q is no loopback address with a port (metrics name users' applications; put a scraper beside the gateway)", a)
		}
	}
	if _, err := parseLevel(c.Log.Level); err != nil {
		fault("log.level", "%q is none of debug, info, warn, error", c.Log.Level)
	}
	return errors.Join(errs...)
}

func (c *Config) certificateFaults(at string, f CertificateFile, fault func(path, format string, args ...any)) {
	pair := []string{f.SignCertFile, f.SignKeyFile, f.EncCertFile, f.EncKeyFile}
	given := 0
	for _, p := range pair {
		if p != "" {
			given++
		}
	}
	switch {
	case (f.CertFile == "") != (f.KeyFile == ""):
		fault(at, "cert_file and key_file go together")
	case given != 0 && given != len(pair):
		fault(at, "sign_cert_file, sign_key_file, enc_cert_file and enc_key_file go together")
	case f.CertFile == "" && given == 0:
		fault(at, "names no certificate (give cert_file and key_file, the four files of a TLCP pair, or both)")
	}
}

// ownHosts wants the gateway's own hosts apart from each other and from those
// of applications: what is served there would hide the application.
func (c *Config) ownHosts(fault func(path, format string, args ...any)) {
	owner := map[string]string{}
	for i := range c.Apps {
		for k, h := range c.Apps[i].Hosts {
			if h, err := apps.CanonicalHost(h); err == nil {
				owner[h] = fmt.Sprintf("apps[%d].hosts[%d]", i, k)
			}
		}
	}
	own := func(path, name string) {
		h, err := apps.CanonicalHost(name)
		switch {
		case name == "":
			fault(path, "missing")
		case err != nil || strings.ContainsAny(name, ":/["):
			fault(path, "%q is no host name (leave out scheme and port)", name)
		case owner[h] != "":
			fault(path, "%q is also %s (give it a name of its own)", name, owner[h])
		default:
			owner[h] = path
		}
	}
	if c.Login != nil {
		if h, err := apps.CanonicalHost(c.Login.Host); err == nil { // else Login.Validate says so
			own("login.host", h)
		}
	}
	if c.AppLink != nil {
		own("app_link.host", c.AppLink.Host)
	}
}

// stalenessFaults wants ages in their order, and applications that exist.
func (c *Config) stalenessFaults(fault func(path, format string, args ...any), lines func(prefix string, err error)) {
	if c.Control == nil && !c.Staleness.isZero() {
		fault("staleness", "without a control center lists only have their own end (remove it)")
	}
	all := c.Staleness.Staleness
	lines("staleness.", all.Validate(access.DefaultStaleness))
	for _, id := range slices.Sorted(maps.Keys(c.Staleness.Apps)) {
		at := "staleness.apps." + id
		if !slices.ContainsFunc(c.Apps, func(a apps.AppConfig) bool { return a.ID == id }) {
			fault(at, "no application of apps has this id")
		}
		lines(at+".", c.Staleness.Apps[id].Validate(all.Or(access.DefaultStaleness)))
	}
}

// ceilingFaults wants local policies that can be read and a scope that exists:
// a misspelt application would leave the real one without its ceiling.
func (c *Config) ceilingFaults(fault func(path, format string, args ...any)) {
	for i, p := range c.Ceiling {
		at := fmt.Sprintf("ceiling[%d]", i)
		if p.Type == "bind" {
			fault(at+".type", "a ceiling says where it holds by scope")
			continue
		}
		if _, err := policy.Check(p.Type, p.Data); err != nil {
			fault(at, "%w", err)
		}
		if p.Scope == "" {
			continue
		}
		if _, err := policy.Check("bind", fmt.Sprintf("LOCAL%06d %s", i+1, p.Scope)); err != nil {
			fault(at+".scope", "%w", err)
			continue
		}
		for item := range strings.SplitSeq(p.Scope, ",") {
			app := item[strings.LastIndexByte(item, '/')+1:]
			if app != "*" && !slices.ContainsFunc(c.Apps, func(a apps.AppConfig) bool { return a.ID == app }) {
				fault(at+".scope", "%q: no application of apps has the id %q", p.Scope, app)
			}
		}
	}
}

func isAddress(a string) bool {
	_, port, err := net.SplitHostPort(a)
	if err != nil {
		return false
	}
	_, err = net.LookupPort("tcp", port)
	return err == nil
}

// ceiling returns the local policies as rows of Table 9.
func (c *Config) ceiling() []wire.Policy {
	var rows []wire.Policy
	for i, p := range c.Ceiling {
		id := fmt.Sprintf("LOCAL%06d", i+1)
		rows = append(rows, wire.Policy{PolicyID: id, PolicyName: "ceiling", PolicyType: p.Type, PolicyData: p.Data})
		if p.Scope != "" {
			rows = append(rows, wire.Policy{PolicyID: fmt.Sprintf("LBIND%06d", i+1), PolicyName: "ceiling", PolicyType: "bind", PolicyData: id + " " + p.Scope})
		}
	}
	return rows
}

// Warnings names what is permitted and yet worth a second look.
func (c *Config) Warnings() []string {
	var out []string
	warn := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for i, a := range c.Apps {
		at := fmt.Sprintf("apps[%d] (%s)", i, a.ID)
		if len(a.PublicPaths) > 0 {
			warn("%s: public_paths %v are open to everybody", at, a.PublicPaths)
		}
		if len(a.AllowAddresses) > 0 {
			warn("%s: allow_addresses %v switches the address rules off for these networks", at, a.AllowAddresses)
		}
		for _, u := range a.Upstreams {
			if strings.HasPrefix(u, "http:") {
				warn("%s: %s is plain HTTP behind the gateway", at, u)
			}
		}
		if a.NoIdentity {
			warn("%s: no_identity: the application does not learn who asks", at)
		}
	}
	if c.Control == nil {
		warn("lists: without a control center a revocation waits for the next file")
	}
	return out
}
