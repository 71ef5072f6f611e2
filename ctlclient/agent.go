package ctlclient

import (
	"context"
	"errors"
	"net"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/wire"
)

// AgentConfig is what an [Agent] needs. The zero value of an optional field
// selects its default.
type AgentConfig struct {
	URL       string // https base of the control center; required
	ControlID string // default: the one of control-sign.crt
	AgentID   string // required
	DeviceID  string // required
	Keys      *keystore.Store

	DeviceType, SystemType string // Table 16; default from the build
	Longitude, Latitude    wire.Coordinate
	IP                     func() (string, int) // the agent's address as Tables 16 and 21 have it; default: the link's own

	Token     func(Token)      // called for each Table 18 that carries a token; must not block
	Resources func(*Resources) // called for each new Table 19; must not block
	SignedOut func(error)      // called when the control center ends the sign-in; must not block

	Outbox  Outbox
	Usage   func() Usage
	Profile wire.Profile
	Logger  *zap.Logger
	Now     func() time.Time
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Token is what Table 18 gives: the handle for the gateways.
type Token struct {
	UserID    string
	AuthToken string
	Expires   time.Time
}

// String hides the token.
func (t Token) String() string { return "token of " + t.UserID }

// Resources is Table 19 with its extensions.
type Resources struct {
	List     wire.ResourceList
	Facts    []wire.ResourceFacts
	Gateways []wire.GatewayRef
}

// Agent is an agent's link to its control center. Make one with [NewAgent].
// It is an [alert.Sink]. The single messages (Authenticate, FetchResources,
// SendStatus, SendAlert) may be used with or without Run.
type Agent struct{ cfg AgentConfig }

// NewAgent checks cfg. Nothing runs until [Agent.Run].
func NewAgent(cfg AgentConfig) (*Agent, error) {
	if cfg.Keys == nil {
		return nil, errors.New("make control link: no keys")
	}
	return &Agent{cfg: cfg}, nil
}

// Run keeps the link until ctx ends: identity report, status and resources at
// least every 60 s once a user has signed in, alerts at once. It returns after
// every goroutine of a has ended.
func (a *Agent) Run(ctx context.Context) error { return errors.New("run control link: not built yet") }

// Login signs userID in by Table 16. The factors are sent once and never kept.
// A refusal is a [*RefusedError].
func (a *Agent) Login(ctx context.Context, userID string, method int, factors []wire.Factor) (Token, error) {
	return Token{}, errors.New("sign in: not built yet")
}

// Logout forgets the user: reports stop until the next Login.
func (a *Agent) Logout() {}

// Authenticate sends Table 16 as it is and returns Table 18 as it came.
func (a *Agent) Authenticate(ctx context.Context, m *wire.Authentication) (*wire.AuthenticationReply, error) {
	return nil, errors.New("send table 16: not built yet")
}

// FetchResources fetches Table 19.
func (a *Agent) FetchResources(ctx context.Context) (*Resources, error) {
	return nil, errors.New("fetch table 19: not built yet")
}

// SendStatus sends Table 21 at once, past the outbox.
func (a *Agent) SendStatus(ctx context.Context, m *wire.AgentStatus) error {
	return errors.New("send table 21: not built yet")
}

// SendAlert sends Table 22 at once, past the outbox.
func (a *Agent) SendAlert(ctx context.Context, m *wire.AgentAlert) error {
	return errors.New("send table 22: not built yet")
}

// Raise sends al to the control center as Table 22. It never blocks.
func (a *Agent) Raise(al alert.Alert) {}

// Status returns the state of the link.
func (a *Agent) Status() AgentStatus { return AgentStatus{} }

// AgentStatus is the state of an agent's link.
type AgentStatus struct {
	Connected     bool                   `json:"connected"`
	UserID        string                 `json:"user_id,omitempty"`
	TokenExpires  time.Time              `json:"token_expires,omitzero"`
	LastIdentity  time.Time              `json:"last_identity,omitzero"`
	LastStatus    time.Time              `json:"last_status,omitzero"`
	LastResources time.Time              `json:"last_resources,omitzero"`
	Outbox        [NumClasses]ClassStats `json:"outbox"`
	AlertsRefused uint64                 `json:"alerts_refused"`
	Rejected      uint64                 `json:"rejected"`
	Failures      uint64                 `json:"failures"`
	LastError     string                 `json:"last_error,omitempty"`
}
