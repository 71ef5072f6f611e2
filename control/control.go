// Package control is the reference control center of CSA GCR 002-2025: the
// policy decision point that enrols gateways, agents and applications, keeps
// users, grants, policies and locks, gives gateways their signed lists (Tables
// 4 to 11, clause 7) and agents their tokens and resources (Tables 16 to 22,
// clause 9), and pushes each revocation the moment it is committed.
//
// Start reading at [New] and [Server.Run]; the walk of a change is
// model → store → fan-out → push stream.
package control

import (
	"context"
	"errors"
)

// Server is a control center. Make one with [New].
type Server struct {
	cfg Config
}

// New opens the store, the keys and the certificate authority that cfg names.
// Nothing runs until [Server.Run].
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.defaults()
	return &Server{cfg: cfg}, nil
}

// Run serves until ctx ends and returns after every goroutine of s has ended.
func (s *Server) Run(ctx context.Context) error {
	return errors.New("run control center: not built yet")
}
