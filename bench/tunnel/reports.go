//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"golang.org/x/sys/unix"

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
	idleFor     = 6 * time.Second
	agents      = 10_000
)

// reports runs a few agents' links to a real control center at many times their
// pace, and says what share of two cores 10,000 agents at theirs would take of
// it. A report is what an agent sends at least every 60 s: identity (Table 16),
// resource list (Table 19) and status (Table 21), in one X.report. What an SM2 verification
// costs at the same time says how busy the machine is: the operations that a
// report needs are four of its kind.
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
	var all []*ctlclient.Agent
	for i := range reporters {
		a, err := reporter(s, o, fmt.Sprintf("r%d", i), &sent)
		if err != nil {
			return err
		}
		all = append(all, a)
	}
	pid := s.Control.PID()
	time.Sleep(2 * time.Second)
	idle := pidCPU(pid) // a gateway's link and the control center's own clocks; the sign-ins' garbage is gone by now
	time.Sleep(idleFor)
	idle = (pidCPU(pid) - idle) / idleFor.Seconds()
	for _, a := range all {
		wg.Go(func() { _ = a.Run(ctx) })
	}
	time.Sleep(2 * time.Second)
	before, n := pidCPU(pid), sent.Load()
	end := time.Now().Add(reportFor)
	yard, err := verification(end)
	if err != nil {
		return err
	}
	cost, done := pidCPU(pid)-before, sent.Load()-n
	if done == 0 {
		return fmt.Errorf("no report arrived")
	}
	each := max(0, cost-idle*reportFor.Seconds()) / float64(done)
	share := (idle + each*agents/60) / 2 * 100
	verdict := "missed"
	if share < 10 {
		verdict = "met"
	}
	t.row("control center's CPU for 10,000 agents that report every 60 s, of two cores", fmt.Sprintf("%.1f %%", share), "< 10 %", verdict)
	t.row("of it: without any report", fmt.Sprintf("%.1f %%", idle/2*100), "", "")
	t.row(fmt.Sprintf("of it: a report (Tables 16, 19 and 21), %d measured", done), fmt.Sprintf("%.2f ms", each*1000), "", "")
	t.row("the same in SM2 verifications, and what one took in that time", fmt.Sprintf("%.1f; %.0f us", each/yard, yard*1e6), "", "")
	return nil
}

// verification returns the CPU seconds of an SM2 verification, the median of
// those made every now and then until end.
func verification(end time.Time) (float64, error) {
	key, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		return 0, err
	}
	sig, err := key.SignWithSM2(rand.Reader, nil, []byte("yardstick"))
	if err != nil {
		return 0, err
	}
	runtime.LockOSThread() // whose CPU is read
	defer runtime.UnlockOSThread()
	var all []float64
	for time.Now().Before(end) {
		const n = 20
		before, err := threadCPU()
		if err != nil {
			return 0, err
		}
		for range n {
			if !sm2.VerifyASN1WithSM2(&key.PublicKey, nil, []byte("yardstick"), sig) {
				return 0, fmt.Errorf("a signature does not verify")
			}
		}
		after, err := threadCPU()
		if err != nil {
			return 0, err
		}
		all = append(all, (after-before)/n)
		time.Sleep(200 * time.Millisecond)
	}
	slices.Sort(all)
	return all[len(all)/2], nil
}

func threadCPU() (float64, error) {
	var u unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &u)
	return float64(u.Nano()) / 1e9, err
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
