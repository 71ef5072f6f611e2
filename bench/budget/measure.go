package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/memnet"
	"github.com/yumen-zt/yumen/test/roles"
)

// senders is how many gateways and agents are timed: their reports follow a
// timer, and many timers make an open loop.
const senders = 4

const password = "correct horse 1"

// measure runs one cell until each timed table of the agents has n samples.
func measure(c cell, n int, rate float64) (*result, error) {
	dir, remove, err := folder()
	if err != nil {
		return nil, err
	}
	defer remove()
	b := &bench{samples: map[string][]time.Duration{}}
	rc := roles.Config{Dir: dir, Control: func(cc *control.Config) {
		cc.AllowChaos, cc.Now, cc.TokenLife, cc.SessionLife = true, b.now, 12*time.Hour, 240*time.Hour
	}}
	if c.net != nil {
		b.net = memnet.New(*c.net)
		rc.Address, rc.Listen, rc.Dial = "control.test:8443", b.net.Listen, b.net.Dial
	} else {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		rc.Address = ln.Addr().String()
		ln.Close()
	}
	if b.site, err = roles.New(rc); err != nil {
		return nil, err
	}
	if err := b.site.Start(); err != nil {
		return nil, err
	}
	defer b.site.Stop()
	s, err := b.senders(c, rate)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	time.Sleep(2 * time.Second)
	b.mu.Lock()
	clear(b.samples) // of the start
	b.outage = 0
	b.mu.Unlock()
	b.site.Record.ResetGaps()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	beside, ctx := errgroup.WithContext(ctx)
	if c.during != nil {
		beside.Go(func() error { return c.during(ctx, b) })
	}
	beside.Go(func() error { return b.push(ctx, s.user) })
	began := time.Now()
	every := time.Duration(float64(time.Second) / rate)
	for i := 0; i < n; i++ { // open loop: each at its time, whatever became of the others
		time.Sleep(time.Until(began.Add(time.Duration(i) * every)))
		s.raise(i)
		if ctx.Err() != nil {
			break
		}
	}
	// The timers of the reports drift behind; give them the rest.
	for wait := time.Now(); b.least() < n && time.Since(wait) < 20*time.Second && c.name != "planted"; {
		time.Sleep(50 * time.Millisecond)
	}
	cancel()
	if err := beside.Wait(); err != nil {
		return nil, err
	}
	b.drain(s, n)
	return b.result(c, s, n)
}

// least is how many samples the rarest table of the agents' reports has.
func (b *bench) least() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return min(len(b.samples["agent-control T16"]), len(b.samples["agent-control T21"]))
}

// parties are who sends.
type parties struct {
	gateways []*roles.Gateway
	agents   []*roles.Agent
	load     []*roles.Agent
	user     string // who is locked and unlocked
}

func (p *parties) stop() {
	for _, g := range p.gateways {
		g.Stop()
	}
	for _, a := range append(p.agents, p.load...) {
		a.Stop()
	}
}

// raise raises the i-th alert at a gateway and at an agent.
func (p *parties) raise(i int) {
	p.gateways[i%len(p.gateways)].Raise(alert.Alert{Code: alert.AppDown, Detail: fmt.Sprintf("number g%08d.", i)})
	p.agents[i%len(p.agents)].Raise(alert.Alert{Code: alert.TunnelFault, Detail: fmt.Sprintf("number a%08d.", i)})
}

func (b *bench) senders(c cell, rate float64) (*parties, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	p := &parties{}
	var err error
	if p.user, err = b.site.User(ctx, "bob", password); err != nil {
		return nil, err
	}
	interval := time.Duration(float64(senders) / rate * float64(time.Second))
	for i := range senders {
		party, err := b.site.Enrol(ctx, "gateway", fmt.Sprintf("gateway%d", i))
		if err != nil {
			return nil, err
		}
		g, err := b.site.Gateway(party, func(gc *ctlclient.GatewayConfig) {
			gc.Delivered, gc.IdentityInterval, gc.Now = b.sink("gateway-control"), interval, b.now
		})
		if err != nil {
			return nil, err
		}
		p.gateways = append(p.gateways, g)
		a, err := b.agent(ctx, fmt.Sprintf("agent%d", i), interval, b.sink("agent-control"))
		if err != nil {
			return nil, err
		}
		p.agents = append(p.agents, a)
	}
	for i := range c.load {
		// 10,000 agents that report each 55 s, by fewer.
		a, err := b.agent(ctx, fmt.Sprintf("load%d", i), time.Duration(c.load)*55*time.Second/10_000, nil)
		if err != nil {
			return nil, err
		}
		p.load = append(p.load, a)
	}
	return p, nil
}

func (b *bench) agent(ctx context.Context, name string, interval time.Duration, told func(ctlclient.Delivery)) (*roles.Agent, error) {
	if _, err := b.site.User(ctx, name, password); err != nil {
		return nil, err
	}
	party, err := b.site.Enrol(ctx, "agent", name)
	if err != nil {
		return nil, err
	}
	return b.site.Agent(ctx, party, name, password, func(c *ctlclient.AgentConfig) {
		c.Delivered, c.Interval, c.Now = told, interval, b.now
	})
}

// push locks and unlocks a user and takes the time of each from the commit to
// the gateways' acknowledgements.
func (b *bench) push(ctx context.Context, user string) error {
	for ctx.Err() == nil {
		var out control.Locked
		b.restarting.Lock()
		err := b.site.Do(ctx, "POST", "/v1/locks", control.NewLock{Kind: "user", ID: user, Wait: 10 * time.Second}, &out)
		if err == nil {
			err = b.site.Do(ctx, "DELETE", "/v1/locks/user/"+user, nil, nil)
		}
		b.restarting.Unlock()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		b.mu.Lock()
		for _, g := range out.Gateways {
			if g.Result == "disconnected" {
				b.outage++
				continue
			}
			took := g.After
			if took == 0 {
				took = infinite
			}
			b.samples["control-gateway T7"] = append(b.samples["control-gateway T7"], took)
		}
		b.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

// drain waits until the outboxes are empty, for 30 s at most.
func (b *bench) drain(p *parties, n int) {
	for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(50 * time.Millisecond) {
		waiting := 0
		for _, g := range p.gateways {
			waiting += g.Status().Outbox[ctlclient.ClassAlert].Pending
		}
		for _, a := range p.agents {
			waiting += a.Status().Outbox[ctlclient.ClassAlert].Pending
		}
		if waiting == 0 {
			return
		}
	}
}

// result judges what was measured.
func (b *bench) result(c cell, p *parties, n int) (*result, error) {
	r := &result{Cell: c.name, Samples: map[string][]time.Duration{}}
	arrived, err := b.site.Arrivals()
	if err != nil {
		return nil, err
	}
	seen := map[string]int{}
	for _, a := range arrived {
		if i := strings.Index(a.Content, "number "); i >= 0 {
			seen[a.Content[i:i+len("number g00000000.")]]++
		}
	}
	for i := range n {
		for _, link := range []string{"g", "a"} {
			switch seen[fmt.Sprintf("number %s%08d.", link, i)] {
			case 0:
				r.Missing++
			case 1:
			default:
				r.Doubled++
			}
		}
	}
	for _, g := range p.gateways {
		r.Gap = max(r.Gap, b.site.Record.Gap(g.Party.ID, "T4"))
	}
	for _, a := range p.agents {
		r.Gap = max(r.Gap, b.site.Record.Gap(a.Party.ID, "T16"))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r.Outage = b.outage
	for k, s := range b.samples {
		r.Samples[k] = slices.Sorted(slices.Values(s))
	}
	for _, k := range []string{"gateway-control T4", "gateway-control T10", "gateway-control T11", "agent-control T16", "agent-control T21", "agent-control T22", "control-gateway T7"} {
		if r.Samples[k] == nil {
			r.Samples[k] = []time.Duration{}
		}
	}
	for _, g := range p.gateways {
		st := g.Status()
		r.Lost += st.Failures
		if st.LastError != "" {
			r.LastFault = st.LastError
		}
	}
	for _, a := range p.agents {
		st := a.Status()
		r.Lost += st.Failures
		if st.LastError != "" {
			r.LastFault = st.LastError
		}
	}
	if len(p.load) > 0 {
		r.Notes = fmt.Sprintf(", with %d identities that report as often as 10,000 agents", len(p.load))
	}
	return r, nil
}
