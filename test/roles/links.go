package roles

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/wire"
)

// Enforcer is a gateway's handler that knows who may what, and forgets nothing
// that it was told.
type Enforcer struct {
	mu      sync.Mutex
	rows    map[[2]string][]string // guarded by mu; (user, device) -> applications
	version uint64                 // guarded by mu
	lists   int                    // guarded by mu; whole lists of grants so far
	locked  map[string]bool        // guarded by mu; users
	change  chan struct{}          // guarded by mu; closed at each change
}

func newEnforcer() *Enforcer {
	return &Enforcer{rows: map[[2]string][]string{}, locked: map[string]bool{}, change: make(chan struct{})}
}

func (e *Enforcer) changed() {
	close(e.change)
	e.change = make(chan struct{})
}

// Grants implements [ctlclient.Handler].
func (e *Enforcer) Grants(_ context.Context, g *ctlclient.Grants) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.rows)
	e.add(g.Rows)
	e.version = g.Version
	e.lists++
	e.changed()
	return nil
}

func (e *Enforcer) add(rows []ctlclient.GrantRow) {
	for _, r := range rows {
		e.rows[[2]string{r.UserID, r.DeviceID}] = r.AppIDList
	}
}

// Policies implements [ctlclient.Handler].
func (e *Enforcer) Policies(_ context.Context, p *ctlclient.Policies) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.locked)
	for _, l := range p.Locks {
		e.locked[l.ID] = true
	}
	e.changed()
	return nil
}

// Delta implements [ctlclient.Handler].
func (e *Enforcer) Delta(_ context.Context, d *ctlclient.Delta) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range d.Remove {
		delete(e.rows, [2]string{p.UserID, p.DeviceID})
	}
	for _, l := range d.Locks {
		e.locked[l.ID] = true
	}
	for _, u := range d.Unlocks {
		delete(e.locked, u.ID)
	}
	if !d.NarrowOnly {
		e.add(d.Rows)
		e.version = max(e.version, d.To)
	}
	e.changed()
	return nil
}

// Rows returns how many rows are in force, the version, and how many whole
// lists there were.
func (e *Enforcer) Rows() (n int, version uint64, lists int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.rows), e.version, e.lists
}

// Has reports whether at least n rows are in force. It is for [Enforcer.Await].
func (e *Enforcer) Has(n int) bool { return len(e.rows) >= n }

// Locked reports whether a user or device is locked out.
func (e *Enforcer) Locked(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.locked[id]
}

// Await waits until ok holds, which is called with the lock held at each
// change; it reports false after limit.
func (e *Enforcer) Await(limit time.Duration, ok func(e *Enforcer) bool) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	for {
		e.mu.Lock()
		done, change := ok(e), e.change
		e.mu.Unlock()
		if done {
			return true
		}
		select {
		case <-t.C:
			return false
		case <-change:
		}
	}
}

// IsLocked is for [Enforcer.Await].
func IsLocked(id string) func(*Enforcer) bool { return func(e *Enforcer) bool { return e.locked[id] } }

// IsFree is for [Enforcer.Await].
func IsFree(id string) func(*Enforcer) bool { return func(e *Enforcer) bool { return !e.locked[id] } }

// Gateway is a gateway's link that runs.
type Gateway struct {
	*ctlclient.Gateway
	*Enforcer
	Party *Party
	Own   *Sink // the link's own alerts
	stop  func() error
}

// Sink keeps alerts, and may pass them on.
type Sink struct {
	mu  sync.Mutex
	got []alert.Alert // guarded by mu
	to  alert.Sink
}

// Raise implements [alert.Sink].
func (s *Sink) Raise(a alert.Alert) {
	s.mu.Lock()
	s.got = append(s.got, a)
	s.mu.Unlock()
	if s.to != nil {
		s.to.Raise(a)
	}
}

// Count returns how often code was raised.
func (s *Sink) Count(code alert.Code) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.got {
		if a.Code == code {
			n++
		}
	}
	return n
}

// Gateway runs the link of p.
func (s *Site) Gateway(p *Party, edit func(*ctlclient.GatewayConfig)) (*Gateway, error) {
	g := &Gateway{Enforcer: newEnforcer(), Party: p, Own: &Sink{}}
	c := ctlclient.GatewayConfig{
		URL: p.URL, StateDir: filepath.Join(p.Dir, "state"), GatewayID: p.ID, DeviceID: p.DeviceID, DeviceName: "edge", IP: "192.0.2.1",
		Keys: p.Keys, Handler: g.Enforcer, Alerts: g.Own, Usage: func() ctlclient.Usage { return ctlclient.Usage{CPU: 1, Memory: 2, Disk: 3} },
		Logger: s.cfg.Logger, Dial: s.cfg.Dial,
	}
	if edit != nil {
		edit(&c)
	}
	var err error
	if g.Gateway, err = ctlclient.NewGateway(c); err != nil {
		return nil, err
	}
	g.stop = running(g.Gateway.Run)
	return g, nil
}

// Stop ends the link and waits for it.
func (g *Gateway) Stop() error { return g.stop() }

// Agent is an agent's link that runs.
type Agent struct {
	*ctlclient.Agent
	Party *Party
	stop  func() error
}

// Agent runs the link of p and signs the user in by password.
func (s *Site) Agent(ctx context.Context, p *Party, user, password string, edit func(*ctlclient.AgentConfig)) (*Agent, error) {
	c := ctlclient.AgentConfig{
		URL: p.URL, AgentID: p.ID, DeviceID: p.DeviceID, Keys: p.Keys, StateDir: filepath.Join(p.Dir, "state"),
		Address: func() (string, int) { return "192.0.2.2", 443 }, Usage: func() ctlclient.Usage { return ctlclient.Usage{CPU: 1, Memory: 2, Disk: 3} },
		Logger: s.cfg.Logger, Dial: s.cfg.Dial,
	}
	if edit != nil {
		edit(&c)
	}
	a, err := ctlclient.NewAgent(c)
	if err != nil {
		return nil, err
	}
	out := &Agent{Agent: a, Party: p, stop: running(a.Run)}
	factors := []wire.Factor{{AuthenticationType: 1, AuthenticationContent: password}}
	if _, err := a.Login(ctx, user, 1, factors); err != nil {
		return nil, errors.Join(err, out.Stop())
	}
	return out, nil
}

// Stop ends the link and waits for it.
func (a *Agent) Stop() error { return a.stop() }

// running runs f and returns what ends it.
func running(f func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	return sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		case <-time.After(settle):
			return fmt.Errorf("a link did not end within %v", settle)
		}
	})
}
