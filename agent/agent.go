package agent

import (
	"context"
	"fmt"
	"time"
)

// Agent is one running agent, for one enrolled device. Make it with [New].
type Agent struct {
	cfg Config
}

// New checks cfg and opens the keys and the state. Nothing runs until Run.
func New(cfg Config) (*Agent, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("check agent configuration: %w", err)
	}
	return &Agent{cfg: cfg}, nil
}

// Run serves the faces and keeps the session and the tunnel until ctx ends. It
// returns after every goroutine of a has ended.
func (a *Agent) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Status is a picture of an agent at one moment. It carries no secret.
type Status struct {
	AgentID     string    `json:"agentId"`
	DeviceID    string    `json:"deviceId"`
	UserID      string    `json:"userId,omitempty"`
	State       string    `json:"state"` // signed_out, connecting, ready, degraded
	Expires     time.Time `json:"expires,omitzero"`
	Gateway     string    `json:"gateway,omitempty"`
	GatewayAddr string    `json:"gatewayAddress,omitempty"`
	Resources   int       `json:"resources"`
	Flows       int       `json:"flows"`
}

// Status returns the present state.
func (a *Agent) Status() Status { return Status{State: "signed_out"} }
