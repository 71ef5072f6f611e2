//go:build linux

// Command http measures Yumen beside nginx, haproxy, Go's net/http and, where it
// is installed, caddy as HTTPS reverse proxies, in one run and on one machine. run.sh builds it and starts it; the
// method, what it leaves out and the last figures are in README.md.
//
//	main.go       the run: start, idle connections, interleaved rounds, report
//	peers.go      the gateways' processes and the settings of the peers
//	site.go       Yumen's keys, signed lists, configuration and session cookie
//	upstream.go   the trivial application behind all of them
//	load.go       wrk and h2load
//	nethttp.go    the reverse proxy of Go's standard library
//	client.go     handshakes, a fixed rate
//	idle.go       idle connections, very many connections
//	proc.go       CPU time and memory from /proc
//	goals.go      the goals of the design, and whether they are met
//	report.go     medians, ratios, Markdown
//
// Every peer is measured in every round, the order turns round each time, and
// what counts is the ratio inside a round: absolute figures of a shared machine
// say little.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the settings of a run.
type options struct {
	yumen       string        // the binary
	before      string        // another build of it to compare with; "": none
	rounds      int           // of all workloads and peers
	length      time.Duration // of one measurement
	limit       time.Duration // of the whole run: rounds that do not fit are left out
	gatewayCore int
	grants      int // rows of the grant list beside the one that is used
	idle        int // connections
	only        string
	peers       string // names of those that are measured; "": all
	hold        bool   // start everything, say how to reach it, and wait
}

func main() {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "upstream":
		exit(serveUpstream(os.Args[2]))
	case len(os.Args) == 6 && os.Args[1] == "net/http":
		exit(serveNetHTTP(os.Args[2], os.Args[3], os.Args[4], os.Args[5]))
	}
	var o options
	flag.StringVar(&o.yumen, "yumen", "bin/yumen", "the binary to measure")
	flag.StringVar(&o.before, "before", "", "another build of Yumen to measure beside it")
	flag.IntVar(&o.rounds, "rounds", 5, "interleaved rounds")
	flag.DurationVar(&o.length, "length", 3*time.Second, "length of one measurement")
	flag.DurationVar(&o.limit, "limit", 8*time.Minute, "end of the whole run")
	flag.IntVar(&o.gatewayCore, "core", 0, "core of the gateway that is measured; everything else runs where this program does")
	flag.IntVar(&o.grants, "grants", 10_000, "rows of the access grant list")
	flag.IntVar(&o.idle, "idle", 1000, "idle connections")
	flag.StringVar(&o.only, "only", "", "one workload by its name; default: all")
	flag.StringVar(&o.peers, "peers", "", "measure only these, such as nginx,yumen; default: all")
	flag.BoolVar(&o.hold, "hold", false, "measure nothing: start everything, say how to reach it, and wait for an interrupt")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	runtime.LockOSThread() // children die with the thread that started them
	exit(run(ctx, o))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/http:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run measures everything and prints the report. It leaves no process and no
// file behind.
func run(ctx context.Context, o options) (err error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	dir, err := os.MkdirTemp("", "yumen-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	b, err := start(ctx, dir, o)
	defer func() { err = errors.Join(err, b.stop()) }()
	if err != nil {
		return err
	}
	if o.hold {
		return b.hold(ctx)
	}
	rep := newReport(b)
	if o.only == "" {
		if err := b.measureIdle(ctx, rep, o.idle); err != nil {
			return err
		}
		if err := b.measureMany(ctx, rep, o.yumen, manyConns); err != nil {
			return err
		}
	}
	var longest time.Duration
	for r := range o.rounds {
		if time.Since(began)+longest > o.limit {
			fmt.Fprintf(os.Stderr, "round %d does not fit into %v and is left out\n", r+1, o.limit)
			break
		}
		fmt.Fprintf(os.Stderr, "round %d of %d\n", r+1, o.rounds)
		t := time.Now()
		if err := b.round(ctx, rep, r, o); err != nil {
			return err
		}
		longest = max(longest, time.Since(t))
	}
	if err := rep.memory(); err != nil {
		return err
	}
	if err := rep.audit(ctx); err != nil {
		return err
	}
	return rep.print(ctx, os.Stdout)
}

// hold lets somebody else look at the peers, with perf or a load of his own.
func (b *bench) hold(ctx context.Context) error {
	for _, p := range b.peers {
		fmt.Printf("%s=%s\n%s_pid=%d\n", p.name, p.url(), p.name, p.pid())
	}
	fmt.Printf("cookie='Cookie: %s'\ndir=%s\n", b.cookie, b.dir)
	<-ctx.Done()
	return nil
}

// round measures every workload on every peer once.
func (b *bench) round(ctx context.Context, rep *report, r int, o options) error {
	order := slices.DeleteFunc(slices.Clone(b.peers), func(p *peer) bool {
		return o.peers != "" && !slices.Contains(strings.Split(o.peers, ","), p.name)
	})
	if r%2 == 1 {
		slices.Reverse(order)
	}
	for _, w := range workloads {
		if o.only != "" && o.only != w.name {
			continue
		}
		for _, p := range order {
			if p.extra && !slices.Contains(w.also, p.name) {
				continue
			}
			s, err := b.measure(ctx, w, p, o.length)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", w.name, p.name, err)
			}
			rep.add(w, p, s)
		}
		if w.direct {
			s, err := w.run(ctx, b, b.direct, o.length)
			if err != nil {
				return fmt.Errorf("%s, without a gateway: %w", w.name, err)
			}
			rep.add(w, b.direct, s)
		}
	}
	return nil
}

// measure runs one workload on one peer and reads what it cost.
func (b *bench) measure(ctx context.Context, w *workload, p *peer, length time.Duration) (sample, error) {
	before, err := p.usage(b.core)
	if err != nil {
		return sample{}, err
	}
	t := time.Now()
	s, err := w.run(ctx, b, p, length)
	if err != nil {
		return sample{}, err
	}
	wall := time.Since(t)
	after, err := p.usage(b.core)
	if err != nil {
		return sample{}, err
	}
	if s.requests == 0 {
		return sample{}, errors.New("no request was answered")
	}
	cpu := after.cpu - before.cpu
	s.cpu = cpu / time.Duration(s.requests)
	s.user = (after.user - before.user) / time.Duration(s.requests)
	s.own = float64(cpu) / float64(wall)
	s.others = max(0, float64(after.core-before.core-cpu)/float64(wall))
	return s, nil
}

// sample is one measurement.
type sample struct {
	requests  int
	rate      float64       // requests a second
	p50, p99  time.Duration // 0: not measured
	cpu, user time.Duration // of the gateway, for one request
	own       float64       // share of its core that the gateway had
	others    float64       // share of that core that others had
}

// workload is one way to load a gateway.
type workload struct {
	name   string
	text   string
	also   []string // peers that are measured, too
	direct bool     // also measured without a gateway
	run    func(ctx context.Context, b *bench, p *peer, d time.Duration) (sample, error)
}

const (
	handshakes = 1500 // of one measurement
	fixedRate  = 2000 // requests a second
	rateConns  = 16
	manyConns  = 10_000
)

var workloads = []*workload{
	{name: "h1-1k", text: "h1, 1 KiB, 64 connections", also: []string{"caddy", logged}, run: wrk(64, "/1k")},
	{name: "h1-100k", text: "h1, 100 KiB, 32 connections", run: wrk(32, "/100k")},
	{name: "h2-1k", text: "h2, 1 KiB, 32 × 10 streams", also: []string{"net/http", "caddy"}, run: h2load(32, 10, "/1k")},
	{name: "handshake", text: "full handshake and 1 request", run: fullHandshakes},
	{name: "rate", text: fmt.Sprintf("h1, 1 KiB, %d requests a second", fixedRate), direct: true, run: openLoop},
}
