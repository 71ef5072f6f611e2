package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/test/roles"
	"github.com/yumen-zt/yumen/test/testbed"
)

const password = "correct horse 1"

// parties are who sends.
type parties struct {
	gateways []*roles.Gateway
	agents   []*roles.Agent
	user     string // who is locked and unlocked

	mu   sync.Mutex
	made map[string]made // guarded by mu; by number
}

// made is one alert: whose, and when.
type made struct {
	sender string
	at     time.Time
}

// loadSuite owns the processes of a cell's load.
var loadSuite testbed.Suite

func (p *parties) release() { loadSuite.Close() }

func (p *parties) stop() {
	var all sync.WaitGroup
	for _, g := range p.gateways {
		all.Go(func() { g.Stop() })
	}
	for _, a := range p.agents {
		all.Go(func() { a.Stop() })
	}
	all.Wait()
}

// raise raises the i-th alert at a gateway and at an agent.
func (p *parties) raise(i int) {
	g, a := p.gateways[i%len(p.gateways)], p.agents[i%len(p.agents)]
	one := func(number, sender string, raise func(alert.Alert), code alert.Code) {
		p.mu.Lock()
		p.made[number] = made{sender, time.Now()}
		p.mu.Unlock()
		raise(alert.Alert{Code: code, Detail: number})
	}
	one(fmt.Sprintf("number g%08d.", i), g.Party.ID, g.Raise, alert.AppDown)
	one(fmt.Sprintf("number a%08d.", i), a.Party.ID, a.Raise, alert.TunnelFault)
}

// back returns, for each sender, how long after the end of s the first alert
// that it raised then arrived.
func (p *parties) back(s span, arrived map[string]time.Time) (out []time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := map[string]string{}
	for number, m := range p.made {
		if at, ok := first[m.sender]; m.at.After(s.to) && (!ok || m.at.Before(p.made[at].at)) {
			first[m.sender] = number
		}
	}
	for _, number := range first {
		took := infinite
		if at, ok := arrived[number]; ok {
			took = at.Sub(s.to)
		}
		out = append(out, took)
	}
	return out
}

// drain waits until the outboxes are empty, or for most.
func (p *parties) drain(most time.Duration) {
	for began := time.Now(); time.Since(began) < most; time.Sleep(50 * time.Millisecond) {
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

// senders makes the parties that are timed: enrolled over loopback, then
// connected over the cell's path, all at once.
func (b *bench) senders(c cell, o options) (*parties, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	p := &parties{made: map[string]made{}}
	var err error
	if p.user, err = b.site.User(ctx, "bob", password); err != nil {
		return nil, err
	}
	if _, err = b.site.User(ctx, "alice", password); err != nil {
		return nil, err
	}
	n := c.senders
	if n == 0 {
		n = 4
	}
	if o.Quick {
		n = min(n, 2)
	}
	interval := time.Duration(2 * float64(n) / o.Rate * float64(time.Second))
	p.gateways, p.agents = make([]*roles.Gateway, n), make([]*roles.Agent, n)
	enrolled := map[string][]*roles.Party{}
	for _, kind := range []string{"gateway", "agent"} {
		for i := range n {
			party, err := b.site.Enrol(ctx, kind, fmt.Sprintf("%s%d", kind, i))
			if err != nil {
				return nil, err
			}
			enrolled[kind] = append(enrolled[kind], party)
		}
	}
	b.slow.Store(b.relay != nil)
	var all errgroup.Group
	for i := range n {
		all.Go(func() (err error) {
			p.gateways[i], err = b.site.Gateway(enrolled["gateway"][i], func(gc *ctlclient.GatewayConfig) {
				gc.Delivered, gc.IdentityInterval, gc.Now = b.sink("gateway-control"), interval, b.now
			})
			return err
		})
		all.Go(func() (err error) {
			for range 5 { // a sign-in over a bad path may fail: its user tries again
				p.agents[i], err = b.site.Agent(ctx, enrolled["agent"][i], "alice", password, func(c *ctlclient.AgentConfig) {
					c.Delivered, c.Interval, c.Now = b.sink("agent-control"), interval, b.now
				})
				if err == nil {
					break
				}
			}
			return err
		})
	}
	return p, all.Wait()
}

// rated is the load of 10,000 agents, by fewer that report more often, and of a
// gateway's data path.
func rated(b *bench, o options) (p plan, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	few, many := 50, 10_000
	if o.Quick {
		few, many = few/10, many/10
	}
	p.Quick, p.Interval = o.Quick, time.Duration(few)*55*time.Second/time.Duration(many)
	if _, err := b.site.User(ctx, "carol", password); err != nil {
		return p, err
	}
	for i := range few {
		a, err := b.site.Enrol(ctx, "agent", fmt.Sprintf("load%d", i))
		if err != nil {
			return p, err
		}
		p.Agents = append(p.Agents, loadAgent{ID: a.ID, DeviceID: a.DeviceID, URL: a.URL, Dir: a.Dir, User: "carol", Passphrase: a.Passphrase})
	}
	p.Web, err = dataPath()
	return p, err
}

// dataPath starts a gateway in a process of its own.
func dataPath() (w *loadWeb, err error) {
	defer func() {
		if v := recover(); v != nil { // the owner's way to fail
			err = fmt.Errorf("start gateway: %v", v)
		}
	}()
	const user, device, app = "USR00000001", "DEV00000002", "APP00000001"
	own := testbed.App{ID: app, Name: "web", Upstream: "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(testbed.Port(&loadSuite)))}
	l := testbed.NewLone(&loadSuite, testbed.LoneConfig{Apps: []testbed.App{own}, Grants: []testbed.Grant{testbed.NewGrant(user, device, "tokenLoad01", app)}})
	cert := l.Client(user, device)
	key, err := x509.MarshalECPrivateKey(cert.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		return nil, err
	}
	return &loadWeb{
		Addr: testbed.Loopback(false, l.Port), Host: own.Host(), App: own.Address(), Roots: l.CA.RootPEM(keystore.TLSRoot),
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), Key: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}),
	}, nil
}

// listsOf and rowsOf return what a gateway's link has pulled.
func listsOf(g *roles.Gateway) int { _, _, lists := g.Rows(); return lists }
func rowsOf(g *roles.Gateway) int  { rows, _, _ := g.Rows(); return rows }
