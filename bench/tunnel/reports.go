//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/test/testbed"
	"github.com/yumen-zt/yumen/wire"
)

const (
	reporters   = 12
	reportEvery = 200 * time.Millisecond
	reportFor   = 15 * time.Second
	agents      = 10_000
)

// reports runs a few agents' links to a real control center at many times their
// pace, and says what share of two cores 10,000 agents at theirs would take of
// it. A report is what an agent sends at least every 60 s: identity (Table 16),
// resource list (Table 19) and status (Table 21).
func reports(t *table) (err error) {
	o := &testbed.Suite{}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	defer o.Close()
	s := testbed.NewSite(o, testbed.SiteConfig{Profile: profile.Mixed, Apps: []testbed.App{{ID: "APP00000001", Name: "web", Upstream: "http://127.0.0.1:9"}}})
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	var sent atomic.Int64 // Table 21
	for i := range reporters {
		a, err := reporter(s, o, fmt.Sprintf("r%d", i), &sent)
		if err != nil {
			return err
		}
		wg.Go(func() { _ = a.Run(ctx) })
	}
	time.Sleep(2 * time.Second)
	pid := s.Control.PID()
	before, n := pidCPU(pid), sent.Load()
	time.Sleep(reportFor)
	cost, done := pidCPU(pid)-before, sent.Load()-n
	if done == 0 {
		return fmt.Errorf("no report arrived")
	}
	share := cost / float64(done) * agents / 60 / 2 * 100
	verdict := "missed"
	if share < 10 {
		verdict = "met"
	}
	t.row("control center's CPU for 10,000 agents that report every 60 s, of two cores", fmt.Sprintf("%.1f %%", share), "< 10 %", verdict)
	t.row(fmt.Sprintf("of it: a report of three messages, %d measured", done), fmt.Sprintf("%.2f ms", cost/float64(done)*1000), "", "")
	return nil
}

func reporter(s *testbed.Site, o testbed.Owner, name string, sent *atomic.Int64) (*ctlclient.Agent, error) {
	u := s.NewUser(name)
	s.Grant(u, "any", time.Time{}, "APP00000001")
	p := s.NewAgent(o, name) // enrols; its link is ours from here
	if err := p.Stop(); err != nil {
		return nil, err
	}
	dir := filepath.Dir(p.Config)
	pass, err := keystore.ReadPassphrase(filepath.Join(dir, "passphrase"))
	if err != nil {
		return nil, err
	}
	keys, err := keystore.Open(filepath.Join(dir, "keys"), pass)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(p.Config)
	if err != nil {
		return nil, err
	}
	url, _, _ := strings.Cut(strings.TrimPrefix(string(text), "control: "), "\n")
	a, err := ctlclient.NewAgent(ctlclient.AgentConfig{
		URL: url, AgentID: p.ID, DeviceID: p.DeviceID, Keys: keys, Interval: reportEvery, Usage: func() ctlclient.Usage { return ctlclient.Usage{} },
		OnToken: func(ctlclient.Token) {}, OnResources: func(*ctlclient.Resources) {}, OnSignedOut: func(error) {},
		Delivered: func(d ctlclient.Delivery) {
			if d.Type == "T21" {
				sent.Add(1)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err = a.Login(ctx, u.ID, wire.MethodLocal, []wire.Factor{{AuthenticationType: 1, AuthenticationContent: u.Password}})
	return a, err
}
