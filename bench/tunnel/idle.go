//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/test/testbed"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

const (
	idleAgent  = "AGT00000001"
	idleDevice = "DEV00000002"
	idleUser   = "USR00000001"
	idleToken  = "tokenIdle01"
	idleWait   = 15 * time.Second // several rounds of PING
	dialers    = 8
	warm       = 1100
)

// idle holds n tunnels to a real gateway process and asks by how much its
// resident memory has grown. The gateway collects early (GOGC=10), so that what
// counts is what lives.
func idle(n int, t *table) (err error) {
	o := &testbed.Suite{}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	defer o.Close()
	if err := os.Setenv("GOGC", "10"); err != nil {
		return err
	}
	l := idleGateway(o, n)
	if err := os.Unsetenv("GOGC"); err != nil {
		return err
	}
	d, cfg, err := idleDialer(l)
	if err != nil {
		return err
	}
	dial := func() (*carrier.Client, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		c, err := d.Dial(ctx, testbed.Loopback(false, l.Port))
		if err != nil {
			return nil, err
		}
		return carrier.Connect(ctx, c, *cfg)
	}
	// What is made once is not a tunnel's: code and tables, and the sessions that
	// the port keeps for resumption, 1,024 at most.
	first, err := fill(warm, dial)
	closeAll(first)
	if err != nil {
		return err
	}
	time.Sleep(5 * time.Second)
	before, err := resident(l)
	if err != nil {
		return err
	}
	began := time.Now()
	all, err := fill(n, dial)
	defer func() { closeAll(all) }()
	if err != nil {
		return err
	}
	took := time.Since(began)
	time.Sleep(idleWait)
	if err := collected(l); err != nil {
		return err
	}
	after, err := resident(l)
	if err != nil {
		return err
	}
	for _, c := range all {
		if err := c.Err(); err != nil {
			return fmt.Errorf("an idle tunnel ended: %w", err)
		}
	}
	each := float64(after.rss-before.rss) / float64(n) / 1024
	verdict := "missed"
	if each <= 12 {
		verdict = "met"
	}
	t.row(fmt.Sprintf("idle tunnel on TLCP, resident memory of the gateway, %d held", n), fmt.Sprintf("%.1f KiB", each), "≤ 12 KiB", verdict)
	part := func(name string) float64 { return (after.of[name] - before.of[name]) / float64(n) / 1024 }
	t.row("of it: heap in use, stacks, goroutines a tunnel", fmt.Sprintf("%.1f KiB, %.1f KiB, %.2f", part("go_memstats_heap_inuse_bytes"), part("go_memstats_stack_inuse_bytes"), part("go_goroutines")*1024), "", "")
	t.row("tunnels made a second, both ends on two cores", fmt.Sprintf("%.0f", float64(n)/took.Seconds()), "", "")
	return nil
}

// idleGateway is a gateway that lets one device have n tunnels.
func idleGateway(o testbed.Owner, n int) *testbed.Lone {
	return testbed.NewLone(o, testbed.LoneConfig{
		Apps:    []testbed.App{{ID: "APP00000001", Name: "web", Upstream: "http://127.0.0.1:9"}},
		Grants:  []testbed.Grant{testbed.NewGrant(idleUser, idleDevice, idleToken, "APP00000001")},
		Gateway: fmt.Sprintf("tunnel: {per_device: %d, renew_within: 1h}\nlimits: {connections: %d, connections_per_source: %d, half_open_per_source: 4096}\n", n+warm, n+2*warm, n+2*warm),
	})
}

func closeAll(all []*carrier.Client) {
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() { c.Close() })
	}
	wg.Wait()
}

// fill makes n tunnels by several dialers at once.
func fill(n int, dial func() (*carrier.Client, error)) ([]*carrier.Client, error) {
	var mu sync.Mutex
	var all []*carrier.Client
	var fault error
	var wg sync.WaitGroup
	for i := range dialers {
		wg.Go(func() {
			for k := i; k < n; k += dialers {
				c, err := dial()
				mu.Lock()
				if err != nil {
					fault = err
				} else {
					all = append(all, c)
				}
				stop := fault != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Wait()
	return all, fault
}

func idleDialer(l *testbed.Lone) (*carrier.TCP, *carrier.ClientConfig, error) {
	return dialerBy(l, nil)
}

// dialerBy is the agent's way to l, by connections of dial; nil: straight there.
func dialerBy(l *testbed.Lone, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (*carrier.TCP, *carrier.ClientConfig, error) {
	keys := l.Party(certid.Identity{Agent: idleAgent, Device: idleDevice})
	channels, err := channel.New(channel.Config{Dial: dial, Keys: keys, TLCP: true, AnyName: true, ALPN: []string{carrier.ALPN}, Peer: func(certid.Identity) error { return nil }})
	if err != nil {
		return nil, nil, err
	}
	key, err := keys.Signer(keystore.Sign)
	if err != nil {
		return nil, nil, err
	}
	chain, err := keys.Chain(keystore.Sign)
	if err != nil {
		return nil, nil, err
	}
	to, err := l.Keys.Chain(keystore.Enc)
	if err != nil {
		return nil, nil, err
	}
	s := envelope.Sender{ID: idleAgent, Key: key, Cert: chain[0]}
	return &carrier.TCP{Channel: channels}, &carrier.ClientConfig{
		Identity: wire.TunnelHello{AgentID: idleAgent, DeviceID: idleDevice, UserID: idleUser, AuthToken: idleToken},
		Mux:      mux.Config{Keeper: mux.NewKeeper(10 * time.Second)}, // one timer for all
		Hello:    func(h wire.TunnelHello) ([]byte, error) { return sealHello(&s, chain, to[0], h) },
	}, nil
}

func sealHello(s *envelope.Sender, chain []*smx509.Certificate, to *smx509.Certificate, h wire.TunnelHello) ([]byte, error) {
	body, err := wire.EncodeExtension(h)
	if err != nil {
		return nil, err
	}
	return s.Seal(envelope.Header{MsgType: wire.TypeHello, Receiver: testbed.LoneGateway, Ext: map[string]jsontext.Value{wire.ExtSigner: envelope.SignerExt(chain)}}, body, to)
}

// collected waits until the gateway has collected its garbage twice, as it does
// within two minutes each by itself: the stacks of the last handshakes go by that.
func collected(l *testbed.Lone) error {
	const count = "go_gc_duration_seconds_count"
	first, err := resident(l)
	if err != nil {
		return err
	}
	for range 250 {
		time.Sleep(time.Second)
		m, err := resident(l)
		if err != nil {
			return err
		}
		if m.of[count] >= first.of[count]+2 {
			break
		}
	}
	time.Sleep(5 * time.Second) // the scavenger's
	return nil
}

// memory is a gateway's at one moment.
type memory struct {
	rss int64
	of  map[string]float64 // go_...
}

func resident(l *testbed.Lone) (*memory, error) {
	m := &memory{of: map[string]float64{}}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", l.PID()))
	if err != nil {
		return nil, err
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		return nil, err
	}
	m.rss = pages * int64(os.Getpagesize())
	r, err := http.Get("http://" + l.Metrics + "/metrics")
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	for _, line := range strings.Split(string(text), "\n") {
		if name, value, ok := strings.Cut(line, " "); ok && strings.HasPrefix(name, "go_") {
			if v, err := strconv.ParseFloat(value, 64); err == nil {
				m.of[name] = v
			}
		}
	}
	return m, err
}
