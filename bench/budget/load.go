package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/test/badpath"
	"github.com/yumen-zt/yumen/wire"
)

// plan is what a load process does.
type plan struct {
	Busy     float64       // share of each processor that it takes; 0: none
	Agents   []loadAgent   // who report
	Interval time.Duration // of each agent's reports
	Web      *loadWeb      // a gateway's data path; nil: none
	Quick    bool          // a short calibration
}

// loadAgent is an enrolled agent.
type loadAgent struct {
	ID, DeviceID, URL, Dir, User string
	Passphrase                   []byte
}

// loadWeb is a gateway, and who may use the application behind it.
type loadWeb struct {
	Addr, Host string // where to connect; the application's host name
	App        string // address that the application listens at: the load is the application, too
	Roots      []byte // PEM
	Cert, Key  []byte // PEM, of the client
}

// loadDone is what a load process has done.
type loadDone struct {
	Reports uint64        // messages of agents that were answered
	Failed  uint64        // that had no answer
	Most    float64       // requests a second that the data path carried in a closed loop
	Rate    float64       // requests a second of the open loop, half of it
	Done    uint64        // requests answered in the open loop
	Bad     uint64        // of those, by something else than 200
	CPU     time.Duration // of this process, from its start
}

// text says what was done in the time.
func (d loadDone) text(took time.Duration) string {
	out := fmt.Sprintf("load process %v CPU", d.CPU.Round(10*time.Millisecond))
	if d.Reports+d.Failed > 0 {
		out += fmt.Sprintf(", %.0f reports of agents a second, %d failed", float64(d.Reports)/took.Seconds(), d.Failed)
	}
	if d.Most > 0 {
		out += fmt.Sprintf(", data path carries %.0f requests a second, had %.0f, %d bad", d.Most, float64(d.Done)/took.Seconds(), d.Bad)
	}
	return out
}

// beLoad reads a plan, loads until standard input ends, and says what it did.
func beLoad() error {
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var p plan
	if err := json.Unmarshal(line, &p); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	all, ctx := errgroup.WithContext(ctx)
	var done loadDone
	var reports, failed atomic.Uint64
	if err := startAgents(ctx, all, p, func(d ctlclient.Delivery) {
		if d.Err != nil {
			failed.Add(1)
		} else {
			reports.Add(1)
		}
	}); err != nil {
		return err
	}
	if p.Web != nil {
		if err := p.Web.start(ctx, all, p.Quick, &done); err != nil {
			return err
		}
	}
	if p.Busy > 0 {
		for range runtime.NumCPU() {
			all.Go(func() error { burn(ctx, p.Busy); return nil })
		}
	}
	reports.Store(0) // the sign-ins of the start
	fmt.Println("ready")
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	done.Reports, done.Failed = reports.Load(), failed.Load()
	cancel()
	err = all.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	done.CPU = cpuTime()
	return errors.Join(err, json.NewEncoder(os.Stdout).Encode(done))
}

// burn keeps a processor busy for share of the time.
func burn(ctx context.Context, share float64) {
	const round = 10 * time.Millisecond
	busy := time.Duration(share * float64(round))
	for ctx.Err() == nil {
		for began := time.Now(); time.Since(began) < busy; {
		}
		time.Sleep(round - busy)
	}
}

// startAgents signs the agents in and lets them report.
func startAgents(ctx context.Context, all *errgroup.Group, p plan, told func(ctlclient.Delivery)) error {
	var starting errgroup.Group
	starting.SetLimit(4)
	for _, la := range p.Agents {
		starting.Go(func() error {
			keys, err := keystore.Open(filepath.Join(la.Dir, "keys"), la.Passphrase)
			if err != nil {
				return err
			}
			a, err := ctlclient.NewAgent(ctlclient.AgentConfig{
				URL: la.URL, AgentID: la.ID, DeviceID: la.DeviceID, Keys: keys, Interval: p.Interval, Delivered: told,
				Dial:    badpath.Dial,
				Address: func() (string, int) { return "192.0.2.2", 443 }, Usage: func() ctlclient.Usage { return ctlclient.Usage{CPU: 1, Memory: 2, Disk: 3} },
			})
			if err != nil {
				return err
			}
			all.Go(func() error { return a.Run(ctx) })
			_, err = a.Login(ctx, la.User, 1, []wire.Factor{{AuthenticationType: 1, AuthenticationContent: password}})
			return err
		})
	}
	return starting.Wait()
}

// webConns is how many connections the data path has.
const webConns = 16

// start serves the application, finds what the gateway carries, and sends half
// of that, by a clock.
func (w *loadWeb) start(ctx context.Context, all *errgroup.Group, quick bool, done *loadDone) error {
	ln, err := net.Listen("tcp", w.App)
	if err != nil {
		return err
	}
	body := make([]byte, 1024)
	app := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.Write(body) })}
	all.Go(func() error {
		<-ctx.Done()
		return app.Close()
	})
	all.Go(func() error {
		if err := app.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	cert, err := tls.X509KeyPair(w.Cert, w.Key)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.Roots)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		MaxIdleConnsPerHost: webConns, MaxConnsPerHost: webConns,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", w.Addr)
		},
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, ServerName: w.Host},
	}}
	_, port, err := net.SplitHostPort(w.Addr)
	if err != nil {
		return err
	}
	get := func(ctx context.Context) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+net.JoinHostPort(w.Host, port)+"/1k", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		n, err := io.Copy(io.Discard, resp.Body)
		if err == nil && (resp.StatusCode != http.StatusOK || n != int64(len(body))) {
			err = fmt.Errorf("answered %s and %d bytes", resp.Status, n)
		}
		return err
	}
	if err := get(ctx); err != nil {
		return fmt.Errorf("try the data path: %w", err)
	}
	length := 3 * time.Second
	if quick {
		length = 300 * time.Millisecond
	}
	if done.Most, err = closedLoop(ctx, length, get); err != nil {
		return fmt.Errorf("find what the data path carries: %w", err)
	}
	done.Rate = done.Most / 2
	all.Go(func() error {
		openLoop(ctx, done.Rate, get, &done.Done, &done.Bad)
		client.CloseIdleConnections()
		return nil
	})
	return nil
}

// closedLoop calls get on every connection as fast as it answers.
func closedLoop(ctx context.Context, d time.Duration, get func(context.Context) error) (rate float64, err error) {
	var n atomic.Int64
	var g errgroup.Group
	began := time.Now()
	for range webConns {
		g.Go(func() error {
			for time.Since(began) < d {
				if err := get(ctx); err != nil {
					return err
				}
				n.Add(1)
			}
			return nil
		})
	}
	err = g.Wait()
	return float64(n.Load()) / time.Since(began).Seconds(), err
}

// openLoop calls get at a rate, over as many connections as are free; what is
// due while none is free is made up for.
func openLoop(ctx context.Context, rate float64, get func(context.Context) error, done, bad *uint64) {
	var all sync.WaitGroup
	var good, faulty atomic.Uint64
	due := make(chan struct{}, 1<<16)
	for range webConns {
		all.Go(func() {
			for range due {
				if err := get(ctx); err == nil {
					good.Add(1)
				} else if ctx.Err() == nil {
					faulty.Add(1)
				}
			}
		})
	}
	began := time.Now()
	for sent := 0; ctx.Err() == nil; time.Sleep(2 * time.Millisecond) {
		for ; sent < int(rate*time.Since(began).Seconds()); sent++ {
			select {
			case due <- struct{}{}:
			default: // it is far behind: that is in the count
			}
		}
	}
	close(due)
	all.Wait()
	*done, *bad = good.Load(), faulty.Load()
}
