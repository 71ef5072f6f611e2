package control

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
)

// Config is what a [Server] needs. The zero value of an optional field selects
// its default.
type Config struct {
	ID             string         `yaml:"id"`              // identifier of this control center, 11 characters; required
	URL            string         `yaml:"url"`             // base URL that enrolled parties are told; required
	Listen         []string       `yaml:"listen"`          // addresses of the standard's links; default [":8443"]
	DataDir        string         `yaml:"data_dir"`        // store, audit and outboxes; required
	KeysDir        string         `yaml:"keys_dir"`        // default data_dir/keys
	CADir          string         `yaml:"ca_dir"`          // default data_dir/ca; issues the certificates of enrolment
	PassphraseFile string         `yaml:"passphrase_file"` // 0600 file that opens both folders; required
	AdminSocket    string         `yaml:"admin_socket"`    // default data_dir/admin.sock, mode 0600
	AuditFile      string         `yaml:"audit_file"`      // default data_dir/audit.jsonl
	Crypto         profile.Config `yaml:"crypto"`          // profile: gm, mixed (default) or intl
	MetricsListen  string         `yaml:"metrics_listen"`  // address of /metrics, plain HTTP: loopback; default: none

	TokenLife    time.Duration `yaml:"token_life"`     // life of an 11-character token; default 10m
	SessionLife  time.Duration `yaml:"session_life"`   // a user must sign in again after it; default 12h
	ListLife     time.Duration `yaml:"list_life"`      // notAfter of a list, from its making; default 24h
	AckWait      time.Duration `yaml:"ack_wait"`       // longest wait for gateways before T18 is answered; default and most 500ms
	Heartbeat    time.Duration `yaml:"heartbeat"`      // comment on an idle push stream; default 300ms
	HistoryDepth int           `yaml:"history_depth"`  // changes that a push stream may lag behind or resume from; default 4096
	PasswordHash string        `yaml:"password_hash"`  // argon2id (default) or pbkdf2-sm3
	StrictWire   bool          `yaml:"strict"`         // the standard's letter for messages that arrive
	PlainAllowed bool          `yaml:"allow_plain"`    // take messages of agents whose body is not sealed
	EnrolLife    time.Duration `yaml:"enrolment_life"` // life of a new enrolment code; default 1h
	CertLife     time.Duration `yaml:"cert_life"`      // life of the certificates of enrolment; default 90 days

	Posture PostureConfig `yaml:"posture"` // what the reported state of a device is worth
	Lockout Lockout       `yaml:"lockout"`
	IDP     *IDPConfig    `yaml:"idp"` // embedded OpenID provider; absent: none

	// AllowChaos lets operators make this control center misbehave, for tests
	// and drills: `yumen control run --allow-chaos`. No configuration has it.
	AllowChaos bool `yaml:"-"`

	Logger *zap.Logger      `yaml:"-"` // default: none
	Now    func() time.Time `yaml:"-"` // default time.Now
	Rand   io.Reader        `yaml:"-"` // default crypto/rand
	// Network opens the listeners, the admin socket's among them ("unix").
	// Default: net.Listen, and a socket of mode 0600; tests give a network in
	// memory.
	Network func(network, address string) (net.Listener, error) `yaml:"-"`

	Audit  audit.Sink `yaml:"-"` // default: JSON lines in AuditFile
	Alerts alert.Sink `yaml:"-"` // the control center's own alerts; default: its log
}

// Lockout bounds how often a password or an enrolment secret may be guessed.
type Lockout struct {
	Attempts  int           `yaml:"attempts"`   // failures in Window that lock a user; default 5
	PerSource int           `yaml:"per_source"` // failures in Window that lock a source address; default 50
	Window    time.Duration `yaml:"window"`     // default 15m
	Duration  time.Duration `yaml:"duration"`   // default 15m
}

// IDPConfig is the embedded OpenID provider's part of [Config].
type IDPConfig struct {
	Listen  []string    `yaml:"listen"`  // browser-facing addresses; default [":9443"]
	Issuer  string      `yaml:"issuer"`  // https URL that browsers and gateways reach; required
	Clients []IDPClient `yaml:"clients"` // who may ask for a login
}

// IDPClient is one relying party: the login host of a gateway.
type IDPClient struct {
	ID           string   `yaml:"id"`
	SecretFile   string   `yaml:"secret_file"` // 0600 file; absent: public client with PKCE
	RedirectURIs []string `yaml:"redirect_uris"`
	LogoutURIs   []string `yaml:"logout_uris"`
}

func or[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (c *Config) defaults() {
	if len(c.Listen) == 0 {
		c.Listen = []string{":8443"}
	}
	or(&c.KeysDir, filepath.Join(c.DataDir, "keys"))
	or(&c.CADir, filepath.Join(c.DataDir, "ca"))
	or(&c.AdminSocket, filepath.Join(c.DataDir, "admin.sock"))
	or(&c.AuditFile, filepath.Join(c.DataDir, "audit.jsonl"))
	or(&c.TokenLife, 10*time.Minute)
	or(&c.SessionLife, 12*time.Hour)
	or(&c.ListLife, 24*time.Hour)
	or(&c.AckWait, 500*time.Millisecond)
	or(&c.Heartbeat, 300*time.Millisecond)
	or(&c.HistoryDepth, 4096)
	or(&c.PasswordHash, "argon2id")
	or(&c.EnrolLife, time.Hour)
	or(&c.CertLife, 90*24*time.Hour)
	or(&c.Lockout.Attempts, 5)
	or(&c.Lockout.PerSource, 50)
	or(&c.Lockout.Window, 15*time.Minute)
	or(&c.Lockout.Duration, 15*time.Minute)
	c.Posture.defaults()
	if c.IDP != nil && len(c.IDP.Listen) == 0 {
		c.IDP.Listen = []string{":9443"}
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Network == nil {
		c.Network = func(network, address string) (net.Listener, error) {
			if network == "unix" {
				return adminsock.Listen(address)
			}
			return net.Listen(network, address)
		}
	}
	if c.Alerts == nil {
		log := c.Logger
		c.Alerts = alert.Func(func(a alert.Alert) {
			log.Warn("alert", zap.String("code", string(a.Code)), zap.String("user_id", a.UserID), zap.String("remote_addr", a.Remote),
				zap.Stringer("reason", a.Reason), zap.String("detail", a.Detail))
		})
	}
}

// Validate returns every fault of c, joined, each named by its YAML path.
func (c *Config) Validate() error {
	var errs []error
	fault := func(path, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: "+format, append([]any{path}, args...)...))
	}
	if len(c.ID) != 11 {
		fault("id", "%q has %d characters, 11 are needed (for example CTL00000001)", c.ID, len(c.ID))
	}
	httpsURL := func(path, s string) {
		if u, err := url.Parse(s); err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			fault(path, "%q is no https URL without query", s)
		}
	}
	httpsURL("url", c.URL)
	if c.DataDir == "" {
		fault("data_dir", "is required")
	}
	if err := c.Crypto.Profile.Check(); err != nil {
		fault("crypto.profile", "%w", err)
	}
	if c.PassphraseFile == "" {
		fault("passphrase_file", "is required (a file of mode 0600)")
	}
	if c.AckWait > 500*time.Millisecond || c.AckWait < 0 {
		fault("ack_wait", "%v is outside 0..500ms", c.AckWait)
	}
	if c.TokenLife != 0 && c.TokenLife < time.Minute {
		fault("token_life", "%v is below 1m", c.TokenLife)
	}
	for path, d := range map[string]time.Duration{
		"list_life": c.ListLife, "session_life": c.SessionLife, "heartbeat": c.Heartbeat, "enrolment_life": c.EnrolLife, "cert_life": c.CertLife,
		"lockout.window": c.Lockout.Window, "lockout.duration": c.Lockout.Duration,
	} {
		if d < 0 {
			fault(path, "%v is negative", d)
		}
	}
	for path, n := range map[string]int{
		"history_depth":    c.HistoryDepth,
		"lockout.attempts": c.Lockout.Attempts, "lockout.per_source": c.Lockout.PerSource,
	} {
		if n < 0 {
			fault(path, "%d is negative", n)
		}
	}
	switch c.PasswordHash {
	case "", "argon2id", "pbkdf2-sm3":
	default:
		fault("password_hash", "%q is neither argon2id nor pbkdf2-sm3", c.PasswordHash)
	}
	c.Posture.validate(fault)
	if c.IDP != nil {
		httpsURL("idp.issuer", c.IDP.Issuer)
		for i, cl := range c.IDP.Clients {
			if cl.ID == "" || len(cl.RedirectURIs) == 0 {
				fault(fmt.Sprintf("idp.clients[%d]", i), "needs id and redirect_uris")
			}
		}
	}
	return errors.Join(errs...)
}
