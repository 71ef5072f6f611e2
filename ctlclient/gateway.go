package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/internal/alert"
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
	StateDir   string `yaml:"state_dir"`   // versions seen and the last good lists; required

	IdentityInterval time.Duration `yaml:"identity_interval"` // Tables 4 and 10; default and most 55 s (§7.2, §7.3.4)
	PullInterval     time.Duration `yaml:"pull_interval"`     // safety net beside the push; default and most 60 s
	RequestTimeout   time.Duration `yaml:"request_timeout"`   // one message and its answer; default 10 s

	GatewayID string          `yaml:"-"` // required
	DeviceID  string          `yaml:"-"` // required
	IP        string          `yaml:"-"` // Table 4: where the gateway is reached
	Port      int             `yaml:"-"` // Table 4
	Keys      *keystore.Store `yaml:"-"` // tls, sign, enc and the trust files; required
	Handler   Handler         `yaml:"-"` // required
	Profile   wire.Profile    `yaml:"-"`
	Outbox    Outbox          `yaml:"-"` // default: in memory, 4096 records a class
	Alerts    alert.Sink      `yaml:"-"` // further sink for the link's own alerts; they go to the control center in any case
	Usage     func() Usage    `yaml:"-"` // default: this host's, by a [Probe] on StateDir
	Logger    *zap.Logger     `yaml:"-"` // default: none
	Now       func() time.Time
	Dial      func(ctx context.Context, network, addr string) (net.Conn, error) `yaml:"-"` // default: net.Dialer
}

// Gateway is a gateway's link to its control center. Make one with
// [NewGateway], start it with Run. It is an [alert.Sink].
type Gateway struct {
	cfg GatewayConfig
}

// NewGateway checks cfg, opens the state folder and verifies the stored lists.
// Nothing runs until [Gateway.Run].
func NewGateway(cfg GatewayConfig) (*Gateway, error) {
	if cfg.Handler == nil {
		return nil, errors.New("make control link: no handler")
	}
	return &Gateway{cfg: cfg}, nil
}

// Run hands the stored lists to the handler, then keeps the link until ctx
// ends. It returns after every goroutine of g has ended.
func (g *Gateway) Run(ctx context.Context) error {
	return fmt.Errorf("run control link: not built yet")
}

// Raise sends a to the control center as Table 11. It never blocks.
func (g *Gateway) Raise(a alert.Alert) {}

// Resolve asks the control center for the userId of an identity provider's
// subject (Q26). It answers from a bounded cache where it can; without an
// entry the reason is SubjectUnmapped, without the control center
// UpstreamUnreachable.
func (g *Gateway) Resolve(ctx context.Context, issuer, subject string) (userID string, r reason.Reason) {
	return "", reason.SubjectUnmapped
}

// Sync asks for a full pull of both lists as soon as the link is up.
func (g *Gateway) Sync() {}

// Status returns the state of the link.
func (g *Gateway) Status() GatewayStatus { return GatewayStatus{} }

// GatewayStatus is the state of a gateway's link, for `yumen status`.
type GatewayStatus struct {
	Connected       bool                   `json:"connected"`
	Push            bool                   `json:"push"` // the push stream is open
	LastIdentity    time.Time              `json:"last_identity,omitzero"`
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
	AlertsRefused   uint64                 `json:"alerts_refused"` // the queue before the outbox was full
	Rejected        uint64                 `json:"rejected"`       // reports that the control center refused for good
	Sessions        uint64                 `json:"sessions"`       // connections made since the start
	Failures        uint64                 `json:"failures"`       // connections lost or failed since the start
	LastError       string                 `json:"last_error,omitempty"`
	NextTry         time.Time              `json:"next_try,omitzero"`
}
