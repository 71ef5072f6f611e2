package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/test/badpath"
	"github.com/yumen-zt/yumen/test/roles"
)

// bench is one running cell.
type bench struct {
	site     *roles.Site
	relay    *badpath.Relay  // the links' path; nil: loopback
	kernel   *badpath.Kernel // of a cell in a namespace
	vanished int             // connections; for the goroutine of during
	quick    bool
	began    time.Time    // of the measurement; what was made before it belongs to the start. Guarded by mu
	slow     atomic.Bool  // the relay is in use
	offset   atomic.Int64 // of the wall clocks

	restarting sync.Mutex

	mu      sync.Mutex
	samples map[string][]time.Duration // guarded by mu
	aways   []span                     // guarded by mu
	inAway  int                        // guarded by mu; messages of times without a path
	notes   []string                   // guarded by mu
}

// span is a time without a path, or without a control center. A zero end: it
// lasts.
type span struct{ from, to time.Time }

func (b *bench) now() time.Time { return time.Now().Add(time.Duration(b.offset.Load())) }

func (b *bench) note(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.notes = append(b.notes, fmt.Sprintf(format, args...))
}

// away notes that the path goes away; what it returns notes that it is back.
func (b *bench) away() (back func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := len(b.aways)
	if os.Getenv(logVar) != "" {
		fmt.Fprintln(os.Stderr, "AWAY", time.Now().Format(time.RFC3339Nano))
	}
	b.aways = append(b.aways, span{from: time.Now()})
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.aways[i].to = time.Now()
		if os.Getenv(logVar) != "" {
			fmt.Fprintln(os.Stderr, "BACK", time.Now().Format(time.RFC3339Nano))
		}
	}
}

// sample takes a message that was made took ago. One that was under way while
// there was no path is judged as a buffered one; made after the path came back
// it is not, whatever the link knew then.
func (b *bench) sample(key string, took time.Duration, answered bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	made := time.Now().Add(-took)
	if made.Before(b.began) {
		return
	}
	for _, s := range b.aways {
		if s.to.IsZero() || made.Before(s.to) && time.Now().After(s.from) {
			b.inAway++
			return
		}
	}
	if !answered {
		took = infinite
	}
	b.samples[key] = append(b.samples[key], took)
}

func (b *bench) sink(link string) func(ctlclient.Delivery) {
	return func(d ctlclient.Delivery) { b.sample(link+" "+d.Type, d.Took, d.Err == nil) }
}

// count returns how many messages of a link were judged so far.
func (b *bench) count(link string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, s := range b.samples {
		if strings.HasPrefix(k, link+" ") {
			n += len(s)
		}
	}
	return n
}

// dial connects the links: over the bad path once it is in use.
func (b *bench) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if network == "tcp" && b.slow.Load() {
		return b.relay.Dial(ctx, network, addr)
	}
	return badpath.Dial(ctx, network, addr)
}

// start makes the control center of a cell.
func (b *bench) start(c cell, dir string, o options) error {
	if c.ns { // before anything is sent
		var err error
		if b.kernel, err = badpath.NewKernel(controlPort); err != nil {
			return err
		}
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(controlPort))
	if !c.ns { // others use the port
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		address = ln.Addr().String()
		ln.Close()
	}
	var err error
	if c.path != nil {
		path := *c.path
		path.Target = address
		if b.relay, err = badpath.NewRelay(path); err != nil {
			return err
		}
	}
	b.site, err = roles.New(roles.Config{Dir: dir, Address: address, Dial: b.dial, Logger: logger(), Control: func(cc *control.Config) {
		cc.AllowChaos, cc.Now, cc.TokenLife, cc.SessionLife = true, b.now, 12*time.Hour, 240*time.Hour
	}})
	if err != nil {
		return err
	}
	if rows := c.rows; rows > 0 {
		if o.Quick {
			rows /= 100
		}
		if err := b.site.Preload(rows); err != nil {
			return err
		}
	}
	return b.site.Start()
}

// controlPort is the control center's in a namespace of its own.
const controlPort = 8443

// measure runs one cell until each link that reports has o.N samples.
func measure(o options) (_ *result, err error) {
	c, err := cellOf(o.Cell)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "budget")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	b := &bench{samples: map[string][]time.Duration{}, quick: o.Quick}
	if err := b.start(c, dir, o); err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, b.site.Stop())
		if b.relay != nil {
			b.relay.Close()
		}
	}()
	s, err := b.senders(c, o)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	var load *loadProcess
	if c.load != nil {
		p, err := c.load(b, o)
		if err != nil {
			return nil, err
		}
		defer s.release()
		if load, err = startLoad(p); err != nil {
			return nil, err
		}
	}
	rows := c.rows
	if o.Quick {
		rows /= 100
	}
	for _, g := range s.gateways { // the first fetch of a long list is no part of the cell
		if !g.Await(3*time.Minute, func(e *roles.Enforcer) bool { return e.Has(rows) }) {
			return nil, fmt.Errorf("start cell %s: %s has no list", c.name, g.Party.ID)
		}
	}
	settle := 2 * time.Second
	if c.path != nil {
		settle += 20 * c.path.Delay // the first connections take four round trips each
	}
	if o.Quick {
		settle /= 4
	}
	time.Sleep(settle)
	b.mu.Lock()
	clear(b.samples) // of the start
	b.began = time.Now()
	b.mu.Unlock()
	b.site.Record.ResetGaps()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	beside, ctx := errgroup.WithContext(ctx)
	if c.during != nil {
		beside.Go(func() error { return c.during(ctx, b) })
	}
	beside.Go(func() error { return b.push(ctx, s.user) })
	began, before := time.Now(), cpuTime()
	enough := func() bool { return b.count("gateway-control") >= o.N && b.count("agent-control") >= o.N }
	most := 3 * time.Duration(float64(o.N)/(2*o.Rate)*float64(time.Second)) // three times what it takes without delays
	every := time.Duration(float64(time.Second) / o.Rate)
	for i := 0; ctx.Err() == nil; i++ { // open loop: each at its time, whatever became of the others
		time.Sleep(time.Until(began.Add(time.Duration(i) * every)))
		if i%16 == 0 && (enough() || time.Since(began) > most) {
			break
		}
		s.raise(i)
	}
	took := time.Since(began)
	used := cpuTime() - before
	b.note("CPU of control center and links %.0f %% of one processor", 100*used.Seconds()/took.Seconds())
	cancel()
	if err := beside.Wait(); err != nil {
		return nil, err
	}
	done, err := load.stop()
	if err != nil {
		return nil, err
	}
	if c.load != nil {
		b.note("%s", done.text(time.Since(began)))
	}
	if c.ns && c.name == "blackhole" {
		n, err := b.kernel.Dropped()
		if err != nil {
			return nil, err
		}
		b.note("%d connections vanished, %d packets dropped", b.vanished, n)
	}
	if b.relay != nil {
		b.note("%d segments lost", b.relay.Lost())
	}
	s.drain(c.drain())
	return b.result(c, s, o, began, took)
}

// push locks and unlocks a user and takes the time of each from the commit to
// the gateways' acknowledgements.
func (b *bench) push(ctx context.Context, user string) error {
	for ctx.Err() == nil {
		var out control.Locked
		b.restarting.Lock()
		began := time.Now()
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
		for _, g := range out.Gateways {
			if g.Result != "disconnected" { // a gateway without a stream takes the list when it is back
				took := g.After
				if took == 0 {
					took = time.Since(began)
				}
				b.sample("control-gateway T7", took, g.After != 0)
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

// result judges what was measured.
func (b *bench) result(c cell, p *parties, o options, began time.Time, took time.Duration) (*result, error) {
	r := &result{Cell: c.name, Begin: began, Took: took, Want: o.N, Samples: map[string][]time.Duration{}, Load: loadAverage()}
	arrived, err := b.site.Arrivals()
	if err != nil {
		return nil, err
	}
	first, times := map[string]time.Time{}, map[string]int{}
	for _, a := range arrived {
		if i := strings.Index(a.Content, "number "); i >= 0 {
			name := a.Content[i : i+len("number g00000000.")]
			first[name] = a.Received
			times[name]++
		}
	}
	for name := range p.made {
		r.Missing += min(1, max(0, 1-times[name]))
		r.Doubled += max(0, times[name]-1)
	}
	for _, g := range p.gateways {
		r.Gap = max(r.Gap, b.site.Record.Gap(g.Party.ID, "T4"))
	}
	for _, a := range p.agents {
		r.Gap = max(r.Gap, b.site.Record.Gap(a.Party.ID, "T16"))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.aways {
		r.Back = append(r.Back, p.back(s, first)...)
	}
	r.Buffered, r.Notes = b.inAway, b.notes
	for k, s := range b.samples {
		r.Samples[k] = slices.Sorted(slices.Values(s))
	}
	add := func(failures uint64, h ctlclient.Hedges, last string) {
		r.Lost += failures
		r.Hedges += h.Sent
		if last != "" {
			r.LastFault = last
		}
	}
	for _, g := range p.gateways {
		st := g.Status()
		add(st.Failures, st.Hedges, st.LastError)
	}
	for _, a := range p.agents {
		st := a.Status()
		add(st.Failures, st.Hedges, st.LastError)
	}
	return r, nil
}

const logVar = "YUMEN_BUDGET_LOG"

// logger is for whoever looks for the cause of a bad figure: what the links say,
// on standard error, when YUMEN_BUDGET_LOG is set.
func logger() *zap.Logger {
	if os.Getenv(logVar) == "" {
		return nil
	}
	return zap.Must(zap.NewDevelopmentConfig().Build(zap.IncreaseLevel(zap.InfoLevel)))
}

func loadAverage() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(raw)); err == nil && len(f) > 0 {
		return f[0]
	}
	return "unknown"
}
