package agent

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/agent/posture"
	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/clock"
	"github.com/yumen-zt/yumen/tunnel/spa"
)

// Config is what an agent needs. The zero value of an optional field selects
// its default.
type Config struct {
	Dir             string                 `yaml:"dir"`               // what `yumen enroll` wrote; default: the folder of the configuration file
	Keys            string                 `yaml:"keys"`              // key folder; default DIR/keys
	PassphraseFile  string                 `yaml:"passphrase_file"`   // opens the keys; mode 0600; default DIR/passphrase
	Control         string                 `yaml:"control"`           // https base URL of the control center; required; `yumen enroll` writes it
	Crypto          profile.Config         `yaml:"crypto"`            // profile: gm, mixed (default: own links run over TLCP) or intl
	Carrier         string                 `yaml:"carrier"`           // of tunnels: tlcp, tls, quic, or auto for the best that works; default: tlcp, with the profile intl tls
	SealTunnels     bool                   `yaml:"seal_tunnels"`      // run tunnels over TLS and QUIC inside TLCP (SM4-GCM); default false
	Connections     int                    `yaml:"connections"`       // TCP connections of a tunnel: more than one keep a loss from delaying every flow; 1 to 4, default 1
	Permit          []spa.Way              `yaml:"permit"`            // how first packets show a gateway's permit over TCP, in the order they are tried: syn, knock; default knock
	User            string                 `yaml:"user"`              // userId that `agent login` offers; optional
	SOCKS5          []string               `yaml:"socks5"`            // loopback addresses; default 127.0.0.1:1080
	HTTPConnect     []string               `yaml:"http_connect"`      // loopback addresses; default none
	Forwards        []Forward              `yaml:"forwards"`          // fixed ways to one application
	Resolver        string                 `yaml:"resolver"`          // loopback address that answers the names of resources by DNS; default none
	StatusPage      string                 `yaml:"status_page"`       // loopback address; default none
	Socket          string                 `yaml:"socket"`            // of the agent's verbs; default DIR/agent.sock
	StateDir        string                 `yaml:"state_dir"`         // default DIR/state
	Outbox          ctlclient.OutboxConfig `yaml:"outbox"`            // reports that wait for the control center; 8 MiB a class, 1 MiB of reserve
	TrustLocalUsers bool                   `yaml:"trust_local_users"` // serve every local user where the system cannot tell who connects
	MaxFlows        int                    `yaml:"max_flows"`         // at once, over all faces; default 1024
	DeviceType      string                 `yaml:"device_type"`       // Table 16 deviceType; default from the build
	Longitude       float64                `yaml:"longitude"`         // degrees, Table 16; default 0
	Latitude        float64                `yaml:"latitude"`          // degrees, Table 16; default 0

	Logger   *zap.Logger                `yaml:"-"` // default: none
	Now      func() time.Time           `yaml:"-"` // the wall clock; default time.Now
	Elapsed  func() time.Duration       `yaml:"-"` // time that no clock change moves; default the system's
	Probe    func() posture.Report      `yaml:"-"` // the state of the device; default [posture.Look]
	Identity Identity                   `yaml:"-"` // default: the enrolled certificate's
	NewLink  func(Events) (Link, error) `yaml:"-"` // default: to the control center of the enrolment
	Dialer   Dialer                     `yaml:"-"` // default: tunnels by the carrier
	Sealer   StateKey                   `yaml:"-"` // signs the state file; default: the key "sign"
}

// maxConnections is the most TCP connections of a tunnel.
const maxConnections = 4

// Forward is a local address whose every connection goes to one application.
type Forward struct {
	Listen   string `yaml:"listen"`   // loopback address
	App      string `yaml:"app"`      // appId
	Protocol string `yaml:"protocol"` // tcp (default) or udp
	Target   string `yaml:"target"`   // ip:port or host:port of Table 20; needed when the application has several
}

// network returns the protocol.
func (f Forward) network() string { return cmp.Or(f.Protocol, "tcp") }

// Identity is who this agent is: from its enrolled certificate.
type Identity struct{ AgentID, DeviceID string }

var idForm = regexp.MustCompile(`^[0-9A-Za-z]{11}$`)

// Load reads, completes and checks the configuration file at path.
func Load(path string) (Config, error) {
	var c Config
	raw, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read agent configuration: %w", err)
	}
	if err := yaml.UnmarshalWithOptions(raw, &c, yaml.Strict()); err != nil {
		return c, fmt.Errorf("read agent configuration %s: %w", path, err)
	}
	if c.Dir == "" {
		c.Dir = filepath.Dir(path)
	}
	c.setDefaults()
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("check agent configuration %s: %w", path, err)
	}
	return c, nil
}

func (c *Config) setDefaults() {
	if c.Keys == "" {
		c.Keys = filepath.Join(c.Dir, "keys")
	}
	if c.PassphraseFile == "" {
		c.PassphraseFile = filepath.Join(c.Dir, "passphrase")
	}
	if c.Probe == nil {
		c.Probe = func() posture.Report { return posture.Look() }
	}
	if c.Elapsed == nil {
		c.Elapsed = clock.Steady()
	}
	if c.Socket == "" {
		c.Socket = filepath.Join(c.Dir, "agent.sock")
	}
	if c.StateDir == "" {
		c.StateDir = filepath.Join(c.Dir, "state")
	}
	if c.SOCKS5 == nil && c.HTTPConnect == nil && c.Forwards == nil {
		c.SOCKS5 = []string{"127.0.0.1:1080"}
	}
	if c.MaxFlows == 0 {
		c.MaxFlows = 1024
	}
	if c.Connections == 0 {
		c.Connections = 1
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
}

// Validate returns every fault of c, each named by its YAML path.
func (c *Config) Validate() error {
	var errs []error
	fault := func(path, format string, args ...any) {
		errs = append(errs, fmt.Errorf(path+": "+format, args...))
	}
	if c.Dir == "" {
		fault("dir", "missing (run yumen enroll CODE --dir DIR first)")
	}
	if c.Control == "" && c.NewLink == nil {
		fault("control", "missing (the https address of the control center; yumen enroll writes it)")
	}
	if c.Control != "" && !strings.HasPrefix(c.Control, "https://") {
		fault("control", "%q does not begin with https://", c.Control)
	}
	if err := c.Crypto.Profile.Check(); err != nil {
		fault("crypto.profile", "%v", err)
	}
	c.carrierFaults(fault)
	if err := c.Outbox.Validate("outbox."); err != nil {
		errs = append(errs, err)
	}
	if err := spa.CheckWays(c.Permit); err != nil {
		fault("permit", "%v", err)
	}
	if c.User != "" && len(c.User) > 11 {
		fault("user", "%d characters, at most 11 (Table 16)", len(c.User))
	}
	if c.Connections < 0 || c.Connections > maxConnections {
		fault("connections", "%d is not between 1 and %d", c.Connections, maxConnections)
	}
	if c.MaxFlows < 1 || c.MaxFlows > 65536 {
		fault("max_flows", "%d is not between 1 and 65536", c.MaxFlows)
	}
	if c.Longitude < -180 || c.Longitude > 180 {
		fault("longitude", "%v is not between -180 and 180", c.Longitude)
	}
	if c.Latitude < -90 || c.Latitude > 90 {
		fault("latitude", "%v is not between -90 and 90", c.Latitude)
	}
	seen := map[string]string{}
	listen := func(path, network, addr string) {
		if err := loopback(addr); err != nil {
			fault(path, "%v", err)
			return
		}
		if other, twice := seen[network+addr]; twice && !strings.HasSuffix(addr, ":0") {
			fault(path, "%s is already taken by %s", addr, other)
		}
		seen[network+addr] = path
	}
	for i, a := range c.SOCKS5 {
		listen(fmt.Sprintf("socks5[%d]", i), "tcp", a)
	}
	for i, a := range c.HTTPConnect {
		listen(fmt.Sprintf("http_connect[%d]", i), "tcp", a)
	}
	if c.Resolver != "" {
		listen("resolver", "tcp", c.Resolver)
		listen("resolver", "udp", c.Resolver)
	}
	if c.StatusPage != "" {
		listen("status_page", "tcp", c.StatusPage)
	}
	for i, f := range c.Forwards {
		listen(fmt.Sprintf("forwards[%d].listen", i), f.network(), f.Listen)
		if n := f.network(); n != "tcp" && n != "udp" {
			fault(fmt.Sprintf("forwards[%d].protocol", i), "%q is neither tcp nor udp", n)
		}
		if !idForm.MatchString(f.App) {
			fault(fmt.Sprintf("forwards[%d].app", i), "%q is not an appId of 11 letters and digits", f.App)
		}
		if f.Target != "" {
			if _, _, err := net.SplitHostPort(f.Target); err != nil {
				fault(fmt.Sprintf("forwards[%d].target", i), "%v", err)
			}
		}
	}
	return errors.Join(errs...)
}

// loopback says why addr is no loopback ip:port. A name, even localhost, is
// refused: what it resolves to is not ours to trust.
func loopback(addr string) error {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not an ip:port (write 127.0.0.1:PORT or [::1]:PORT)", addr)
	}
	if !ap.Addr().IsLoopback() || ap.Addr().Zone() != "" {
		return fmt.Errorf("%s is not a loopback address: a face serves this machine alone", addr)
	}
	return nil
}
