package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// GatewayConfig is what a [Gateway] needs. The zero value of an optional field
// selects its default.
type GatewayConfig struct {
	URL        string `yaml:"url"`         // https base of the control center; required
	ControlID  string `yaml:"control_id"`  // the control center's identifier; default: the one of control-sign.crt
	DeviceName string `yaml:"device_name"` // Table 4; default: the host name
	DeviceType string `yaml:"device_type"` // Table 4; default "gateway"
	SystemType string `yaml:"system_type"` // Table 4; default: the system and architecture of the build
	StateDir   string `yaml:"state_dir"`   // versions seen and the last good lists; required

	IdentityInterval time.Duration `yaml:"identity_interval"` // Tables 4 and 10; default and most 55 s (§7.2, §7.3.4)
	PullInterval     time.Duration `yaml:"pull_interval"`     // safety net beside the push; default and most 60 s
	RequestTimeout   time.Duration `yaml:"request_timeout"`   // one message and its answer; default 10 s
	MaxListBytes     int64         `yaml:"max_list_bytes"`    // of a whole list; default 256 MiB

	Crypto       profile.Profile `yaml:"-"` // by which protocol; default mixed, by TLCP
	GatewayID    string          `yaml:"-"` // required
	DeviceID     string          `yaml:"-"` // required
	IP           string          `yaml:"-"` // Table 4: where the gateway is reached; default: the address that the control center sees
	Port         int             `yaml:"-"` // Table 4; default 443
	Keys         *keystore.Store `yaml:"-"` // tls, sign, enc and the trust files; required
	Handler      Handler         `yaml:"-"` // required
	Profile      wire.Profile    `yaml:"-"`
	Outbox       Outbox          `yaml:"-"` // default: a [Durable] in StateDir/outbox; Run opens and closes one
	OutboxConfig OutboxConfig    `yaml:"-"` // of that default
	Alerts       alert.Sink      `yaml:"-"` // takes the link's own alerts, and should lead back to Raise; default: Raise itself
	Delivered    func(Delivery)  `yaml:"-"` // for each message that was answered or failed; must not block
	Usage        func() Usage    `yaml:"-"` // default: this host's, by a [Probe] on StateDir

	StateHash func() wire.StateHash   `yaml:"-"` // what Handler has in force; default: not reported
	Freshness func() wire.Freshness   `yaml:"-"` // how stale that is, by application; default: not reported
	Contact   func(at time.Time)      `yaml:"-"` // told when the control center has proved to be there, at the start the last time that it did; default: nobody
	Permit    func() *wire.PermitKeys `yaml:"-"` // what agents' permits are made of; default, and nil: no guard
	Logger    *zap.Logger             `yaml:"-"` // default: none
	Now       func() time.Time
	Dial      func(ctx context.Context, network, addr string) (net.Conn, error) `yaml:"-"` // default: net.Dialer
}

// setDefaults fills what cfg leaves open, then checks it.
func (c *GatewayConfig) setDefaults() error {
	if c.DeviceName == "" {
		c.DeviceName, _ = os.Hostname()
	}
	if c.DeviceType == "" {
		c.DeviceType = "gateway"
	}
	if c.SystemType == "" {
		c.SystemType = runtime.GOOS + "-" + runtime.GOARCH
	}
	limit := func(d *time.Duration, most time.Duration) {
		if *d <= 0 || *d > most {
			*d = most
		}
	}
	limit(&c.IdentityInterval, 55*time.Second)
	limit(&c.PullInterval, 60*time.Second)
	if c.RequestTimeout <= 0 {
		c.RequestTimeout = 10 * time.Second
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Outbox == nil && c.StateDir != "" {
		d := DurableConfig{Dir: filepath.Join(c.StateDir, "outbox"), Key: OutboxKey(c.Keys), Alerts: c.Alerts, Logger: c.Logger, Now: c.Now}
		c.OutboxConfig.Apply(&d)
		c.Outbox = NewDurable(d)
	}
	if c.Usage == nil {
		c.Usage = NewProbe(c.StateDir).Usage
	}
	var errs []error
	for name, missing := range map[string]bool{
		"gateway id": c.GatewayID == "", "device id": c.DeviceID == "", "keys": c.Keys == nil, "handler": c.Handler == nil,
		"url": c.URL == "", "state_dir": c.StateDir == "",
	} {
		if missing {
			errs = append(errs, fmt.Errorf("make control link: no %s", name))
		}
	}
	if c.IP == "" {
		c.IP = outboundIP(c.URL)
	}
	if c.Port == 0 {
		c.Port = 443
	}
	return errors.Join(errs...)
}

// outboundIP returns the address from which this host would reach the control
// center. No packet is sent.
func outboundIP(base string) string {
	if u, err := url.Parse(base); err == nil {
		if conn, err := net.Dial("udp", net.JoinHostPort(u.Hostname(), "443")); err == nil {
			defer conn.Close()
			if a, ok := conn.LocalAddr().(*net.UDPAddr); ok {
				return a.AddrPort().Addr().Unmap().WithZone("").String()
			}
		}
	}
	return "127.0.0.1"
}

// Gateway is a gateway's link to its control center. Make one with
// [NewGateway], start it with Run, once. It is an [alert.Sink].
type Gateway struct {
	cfg      GatewayConfig
	call     *caller
	verifier *Verifier
	opener   *keystore.LiveDecrypter // of the lists
	state    *state
	reports  *reporter
	subjects subjects
	log      *zap.Logger

	verified chan verified // lists that were pulled and verified; drained by the goroutine of Run
	sync     chan struct{} // a wish for a full pull; capacity 1

	cur current // owned by the goroutine that applies

	mu           sync.Mutex
	status       GatewayStatus          // guarded by mu
	lastEvent    string                 // guarded by mu; Last-Event-ID: of the last event applied
	refusedEvent string                 // guarded by mu; id of the delta that was refused last
	arrived      uint64                 // guarded by mu; deltas so far
	whole        map[wire.ListName]bool // guarded by mu; lists whose next pull is unconditional
	half         bool                   // guarded by mu; a change is in force whose rest comes with the list
}

// NewGateway checks cfg, reads the keys and opens the state folder. Nothing
// runs until [Gateway.Run]; Close is needed only when Run is never called.
func NewGateway(cfg GatewayConfig) (*Gateway, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	call, err := newCaller(callerConfig{
		url: cfg.URL, base: "/ztna/v1/gateway", id: cfg.GatewayID, controlID: cfg.ControlID,
		keys: cfg.Keys, crypto: cfg.Crypto, timeout: cfg.RequestTimeout, dial: cfg.Dial, now: cfg.Now,
	})
	if err != nil {
		return nil, err
	}
	cfg.ControlID = call.cfg.controlID
	roots, err := cfg.Keys.Root(keystore.ListRoot)
	if err != nil {
		return nil, fmt.Errorf("make control link: %w", err)
	}
	opener, err := cfg.Keys.Decrypter(keystore.Enc)
	if err != nil {
		return nil, fmt.Errorf("make control link: %w", err)
	}
	live := new(keystore.LiveDecrypter)
	live.Set(opener)
	v, err := NewVerifier(VerifierConfig{
		GatewayID: cfg.GatewayID, DeviceID: cfg.DeviceID, ControlID: cfg.ControlID, Roots: roots, Decrypter: live,
		Profile: cfg.Profile, MaxBytes: cfg.MaxListBytes, Now: cfg.Now,
	})
	if err != nil {
		return nil, err
	}
	g := &Gateway{
		cfg: cfg, call: call, verifier: v, opener: live, log: cfg.Logger,
		verified: make(chan verified), sync: make(chan struct{}, 1), whole: map[wire.ListName]bool{},
	}
	g.reports = newReporter(cfg.Outbox, call, cfg.Logger, cfg.Now, map[string]string{"T4": "/identity", "T10": "/status", "T11": "/alerts", wire.TypeLogout: "/logouts"})
	g.reports.alert = g.alertMessage
	g.reports.delivery.tell = cfg.Delivered
	g.reports.replied = func(_ *Report, m *envelope.Message) { g.differs(m) }
	g.reports.own = cfg.Alerts
	if cfg.Alerts == nil {
		g.reports.own = g.reports
	}
	if _, err := wire.Encode(g.identity()); err != nil {
		return nil, fmt.Errorf("make control link: %w", err)
	}
	if g.state, err = openState(cfg.StateDir); err != nil {
		return nil, err
	}
	return g, nil
}

// Renew takes the keys of a folder, and the protocol of a profile, into use:
// renewed certificates count from the next message and the next connection. The
// identity must be the same. After an error the old ones stay.
func (g *Gateway) Renew(keys *keystore.Store, p profile.Profile) error {
	opener, err := keys.Decrypter(keystore.Enc)
	if err != nil {
		return fmt.Errorf("renew keys of the control link: %w", err)
	}
	if err := g.call.renew(keys, p); err != nil {
		return err
	}
	g.opener.Set(opener)
	return nil
}

// Close gives the state folder free when Run is never called.
func (g *Gateway) Close() { g.state.close() }

// Raise sends a to the control center as Table 11. It never blocks.
func (g *Gateway) Raise(a alert.Alert) { g.reports.Raise(a) }

// EndSession tells the control center that a person has signed out, so that the
// session ends at the other gateways, too. It returns when that is kept, and is
// sent as soon as the link is up. No cookie of the session lives beyond until.
func (g *Gateway) EndSession(ctx context.Context, sessionID string, until time.Time) error {
	m := &wire.Logout{SessionID: sessionID, Until: wire.FormatTime(until)}
	if err := m.Check(); err != nil {
		return err
	}
	body, err := wire.EncodeExtension(m)
	if err != nil {
		return err
	}
	return g.reports.keep(ctx, ClassIdentity, wire.TypeLogout, g.cfg.Now(), nil, body, begun{time.Now(), !g.reports.delivery.up.Load()})
}

// alertMessage makes Table 11 of a, its content in both languages of people.
func (g *Gateway) alertMessage(a alert.Alert) (string, wire.Message) {
	return "T11", wire.GatewayAlert{
		GatewayID: g.cfg.GatewayID, DeviceID: g.cfg.DeviceID, Timestamp: wire.FormatTime(a.Time),
		ExceptionAlertType: string(a.Code), ExceptionAlertLevel: int(alertLevel(a)), ExceptionAlertContent: alertContent(a, g.cfg.DeviceID),
	}
}

// alertLevel returns a's level, or the catalogue's.
func alertLevel(a alert.Alert) alert.Level {
	if a.Level != 0 {
		return a.Level
	}
	if e, ok := alert.Lookup(a.Code); ok {
		return e.Level
	}
	return alert.Warning
}

// maxAlertContent bounds exceptionAlertContent, in characters.
const maxAlertContent = 2000

// alertContent is exceptionAlertContent in Chinese and in English.
func alertContent(a alert.Alert, device string) string {
	a.Detail = audit.Clean(a.Detail, 500)
	return wire.CleanText(a.Content(reason.Chinese, device)+" | "+a.Content(reason.English, device), maxAlertContent)
}

// Sync asks for a full pull of both lists as soon as the link is up.
func (g *Gateway) Sync() {
	select {
	case g.sync <- struct{}{}:
	default:
	}
}

// Status returns the state of the link.
func (g *Gateway) Status() GatewayStatus {
	g.mu.Lock()
	s := g.status
	g.mu.Unlock()
	s.Outbox, s.OutboxFull = g.reports.stats(), g.reports.status().Full
	s.Protocol, s.Suite = g.call.channel()
	s.Hedges = g.call.hedges.stats()
	s.AlertsRefused, s.Rejected = g.reports.refused.Load(), g.reports.rejected.Load()
	s.HighestGrants, s.HighestPolicies = g.state.of(wire.GrantsList).Highest, g.state.of(wire.PoliciesList).Highest
	s.LastStatus = g.reports.lastSent("T10")
	return s
}

func (g *Gateway) set(f func(*GatewayStatus)) {
	g.mu.Lock()
	f(&g.status)
	g.mu.Unlock()
}

// GatewayStatus is the state of a gateway's link, for `yumen status`.
type GatewayStatus struct {
	Connected       bool                   `json:"connected"`
	Protocol        string                 `json:"protocol,omitempty"` // of the newest connection: tlcp, tls1.3 ...
	Suite           string                 `json:"suite,omitempty"`
	Push            bool                   `json:"push"` // the push stream is open
	LastIdentity    time.Time              `json:"last_identity,omitzero"`
	LastContact     time.Time              `json:"last_contact,omitzero"` // the control center proved to be there, this run or before
	Unproved        string                 `json:"unproved,omitempty"`    // why the stored lists wait for the control center
	Differed        uint64                 `json:"differed"`              // times that the control center believed something else to be in force
	LastStatus      time.Time              `json:"last_status,omitzero"`
	LastPull        time.Time              `json:"last_pull,omitzero"`
	GrantsVersion   uint64                 `json:"grants_version"`
	GrantsAt        time.Time              `json:"grants_at,omitzero"` // when it was given to the handler
	GrantsNotAfter  time.Time              `json:"grants_not_after,omitzero"`
	PolicyVersion   uint64                 `json:"policy_version"`
	PolicyAt        time.Time              `json:"policy_at,omitzero"`
	PolicyNotAfter  time.Time              `json:"policy_not_after,omitzero"`
	HighestGrants   uint64                 `json:"highest_grants"`
	HighestPolicies uint64                 `json:"highest_policies"`
	Outbox          [NumClasses]ClassStats `json:"outbox"`
	OutboxFull      bool                   `json:"outbox_full"`    // no space on disk: only alerts and identity reports are kept
	AlertsRefused   uint64                 `json:"alerts_refused"` // the queue before the outbox was full
	Rejected        uint64                 `json:"rejected"`       // reports that the control center refused for good
	Sessions        uint64                 `json:"sessions"`       // connections made since the start
	Reopened        uint64                 `json:"reopened"`       // push streams that fell silent and were opened again
	Hedges          Hedges                 `json:"hedges"`         // messages that were sent again because no answer came
	Failures        uint64                 `json:"failures"`       // connections lost or failed since the start
	Refused         uint64                 `json:"refused"`        // lists and deltas refused since the start
	LastRefusal     string                 `json:"last_refusal,omitempty"`
	StoreError      string                 `json:"store_error,omitempty"` // what is in force would not survive a restart
	LastError       string                 `json:"last_error,omitempty"`
	NextTry         time.Time              `json:"next_try,omitzero"`
}
