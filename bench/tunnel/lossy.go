//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/test/badpath"
	"github.com/yumen-zt/yumen/test/testbed"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/wire"
)

// A path with loss, and what its users do on it.
const (
	lossyDelay  = 20 * time.Millisecond // each way
	lossyShare  = 0.01                  // of segments
	lossyFlows  = 8
	lossyAsks   = 40 // of a flow in a round
	lossyAnswer = 16 << 10
	lossyBulk   = 2 << 20 // of a flow in a round
)

// lossy compares tunnels of one connection and of four over a path that loses
// segments: questions and answers on eight flows, then a download on each.
func lossy(rounds int, t *table) (err error) {
	o := &testbed.Suite{}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	defer o.Close()
	app, err := answers()
	if err != nil {
		return err
	}
	defer app.Close()
	l := testbed.NewLone(o, testbed.LoneConfig{
		Apps:   []testbed.App{{ID: "APP00000001", Name: "answers", Upstream: "tcp://" + app.Addr().String()}},
		Grants: []testbed.Grant{testbed.NewGrant(idleUser, idleDevice, idleToken, "APP00000001")},
	})
	var took, bulk [2][]float64
	conns := [2]int{1, 4}
	for r := range rounds {
		for k := range conns {
			i := (k + r) % 2
			path, err := badpath.NewRelay(badpath.RelayConfig{Target: testbed.Loopback(false, l.Port), Delay: lossyDelay, Loss: lossyShare, Seed: uint64(r)})
			if err != nil {
				return err
			}
			times, down, err := lossyRound(l, path, conns[i], app.Addr().String())
			path.Close()
			if err != nil {
				return err
			}
			took[i], bulk[i] = append(took[i], times...), append(bulk[i], down)
		}
	}
	at := func(v []float64, percent int) float64 {
		v = slices.Sorted(slices.Values(v))
		return v[len(v)*percent/100]
	}
	for _, p := range []int{50, 90, 99} {
		t.row(fmt.Sprintf("%v each way, 1 %% loss, %d flows: answer of %d KiB, p%d, one connection / four", lossyDelay, lossyFlows, lossyAnswer>>10, p),
			fmt.Sprintf("%.0f ms / %.0f ms = %.2f", 1e3*at(took[0], p), 1e3*at(took[1], p), at(took[0], p)/at(took[1], p)), "", "")
	}
	t.row(fmt.Sprintf("the same path: %d MiB down on each flow, one connection / four", lossyBulk>>20),
		fmt.Sprintf("%.1f s / %.1f s = %.2f", at(bulk[0], 50), at(bulk[1], 50), at(bulk[0], 50)/at(bulk[1], 50)), "", "")
	return nil
}

// lossyRound makes a tunnel and uses it; it returns the times of the answers and
// that of the downloads.
func lossyRound(l *testbed.Lone, path *badpath.Relay, conns int, app string) (times []float64, down float64, err error) {
	d, cfg, err := dialerBy(l, path.Dial)
	if err != nil {
		return nil, 0, err
	}
	name := carrier.NewTunnelName()
	connect := func(ctx context.Context, join bool) (*carrier.Client, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		c, err := d.Dial(ctx, testbed.Loopback(false, l.Port))
		if err != nil {
			return nil, err
		}
		own := *cfg
		own.Identity.Tunnel, own.Identity.Join = name, join
		return carrier.Connect(ctx, c, own)
	}
	first, err := connect(context.Background(), false)
	if err != nil {
		return nil, 0, err
	}
	b := carrier.NewBundle(first, carrier.BundleConfig{Connections: conns, Token: idleToken, Join: func(ctx context.Context, _ string) (*carrier.Client, error) { return connect(ctx, true) }})
	defer b.Close()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, n := b.Stats(); n == conns {
			break
		}
		if time.Now().After(end) {
			return nil, 0, errors.New("the tunnel did not get its connections")
		}
	}
	ip, port, _ := net.SplitHostPort(app)
	number, _ := strconv.Atoi(port)
	var flows []net.Conn
	for range lossyFlows {
		f, err := b.Open(context.Background(), "tcp", &wire.AccessRequest{
			AgentID: idleAgent, UserID: idleUser, DeviceID: idleDevice, AuthToken: idleToken, AppID: "APP00000001", AppName: "answers", IP: ip, Port: number,
		})
		if err != nil {
			return nil, 0, err
		}
		defer f.Close()
		flows = append(flows, f)
	}
	var mu sync.Mutex
	each := func(n int64, f func() int) error {
		var wg sync.WaitGroup
		errs := make([]error, len(flows))
		for i, c := range flows {
			wg.Go(func() {
				for range f() {
					began := time.Now()
					if errs[i] = ask(c, n); errs[i] != nil {
						return
					}
					mu.Lock()
					times = append(times, time.Since(began).Seconds())
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}
	if err := each(lossyAnswer, func() int { return lossyAsks }); err != nil {
		return nil, 0, err
	}
	asked := slices.Clone(times)
	began := time.Now()
	err = each(lossyBulk, func() int { return 1 })
	return asked, time.Since(began).Seconds(), err
}

// ask wants n bytes.
func ask(c net.Conn, n int64) error {
	if err := say(c, 'd', n); err != nil {
		return err
	}
	_, err := io.CopyN(io.Discard, c, n)
	return err
}

// answers is an application that gives as many bytes as it is asked for.
func answers() (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go accept(l, func(c net.Conn) error {
		for {
			n, err := asked(c)
			if err == nil {
				_, err = io.Copy(c, &source{n})
			}
			if err != nil {
				return nil // the tunnel's end
			}
		}
	})
	return l, nil
}
