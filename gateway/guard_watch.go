package gateway

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yumen-zt/yumen/bpf"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

const (
	keptDrops  = 256  // sampled drops for `guard drops`
	topSources = 4096 // sources that are counted at once
	topFor     = time.Minute
	topShown   = 20
	topAlerted = 5
)

// guardWatch keeps the newest sampled drops and the sources of the last one or
// two minutes. Its methods may be called from any goroutine.
type guardWatch struct {
	mu     sync.Mutex
	drops  []GuardDrop // guarded by mu; a ring
	next   int
	counts [2]map[sourceReason]uint64 // guarded by mu; this minute, the one before
	turned time.Time

	last    uint64 // drops at the last look; for the goroutine of tend
	looked  time.Time
	current float64 // guarded by mu; drops a second
}

type sourceReason struct {
	source netip.Addr
	reason reason.Reason
}

// GuardDrop is a sampled packet that did not pass.
type GuardDrop struct {
	Time     time.Time      `json:"time"`
	Source   netip.AddrPort `json:"remote_addr"`
	Port     uint16         `json:"port"`
	Protocol uint8          `json:"protocol"`
	Reason   string         `json:"reason"`
	Weight   uint32         `json:"weight"` // how many drops it stands for
}

// GuardSource is a source and how much of it was dropped, estimated from samples.
type GuardSource struct {
	Source netip.Addr `json:"remote_addr"`
	Reason string     `json:"reason"`
	Drops  uint64     `json:"drops"`
}

func (w *guardWatch) init() { w.counts = [2]map[sourceReason]uint64{{}, {}} }

// add takes one sample.
func (w *guardWatch) add(d bpf.Drop) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	g := GuardDrop{now, d.Source, d.Port, d.Protocol, d.Verdict.String(), d.Weight}
	if len(w.drops) < keptDrops {
		w.drops = append(w.drops, g)
	} else {
		w.drops[w.next] = g
		w.next = (w.next + 1) % keptDrops
	}
	w.turn(now)
	k := sourceReason{d.Source.Addr(), d.Verdict.Reason()}
	if _, ok := w.counts[0][k]; ok || len(w.counts[0]) < topSources {
		w.counts[0][k] += uint64(d.Weight)
	}
}

// turn begins a new minute. The caller holds mu.
func (w *guardWatch) turn(now time.Time) {
	switch since := now.Sub(w.turned); {
	case since < topFor:
	case since < 2*topFor:
		w.counts = [2]map[sourceReason]uint64{{}, w.counts[0]}
		w.turned = now
	default:
		w.init()
		w.turned = now
	}
}

func (w *guardWatch) top(n int) []GuardSource {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.turn(time.Now())
	sum := map[sourceReason]uint64{}
	for _, c := range w.counts {
		for k, v := range c {
			sum[k] += v
		}
	}
	out := make([]GuardSource, 0, len(sum))
	for k, v := range sum {
		out = append(out, GuardSource{k.source, k.reason.String(), v})
	}
	slices.SortFunc(out, func(a, b GuardSource) int { return cmp.Or(cmp.Compare(b.Drops, a.Drops), a.Source.Compare(b.Source)) })
	return out[:min(n, len(out))]
}

// newest returns the samples, the newest first.
func (w *guardWatch) newest() []GuardDrop {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := append(slices.Clone(w.drops[w.next:]), w.drops[:w.next]...)
	slices.Reverse(out)
	return out
}

// checkRate raises the alert of a flood.
func (d *guard) checkRate() {
	if d.tier == nil {
		return
	}
	c, err := d.tier.Counters()
	if err != nil {
		return // the metric fails, too, and says so
	}
	now, n := time.Now(), c.Dropped()
	w := &d.watch
	was, at := w.last, w.looked
	w.last, w.looked = n, now
	if at.IsZero() || n < was {
		return
	}
	rate := float64(n-was) / now.Sub(at).Seconds()
	w.mu.Lock()
	w.current = rate
	w.mu.Unlock()
	if rate < float64(d.cfg.AlertRate) || d.cfg.AlertRate == 0 {
		return
	}
	var top []string
	a := alert.Alert{Code: alert.GuardFlood, Reason: reason.GuardUnauthorized}
	for i, s := range w.top(topAlerted) {
		if i == 0 {
			a.Remote = s.Source.String()
			if r, err := reason.Parse(s.Reason); err == nil {
				a.Reason = r
			}
		}
		top = append(top, fmt.Sprintf("%s %s %d", s.Source, s.Reason, s.Drops))
	}
	a.Detail = fmt.Sprintf("%.0f drops/s; in the last minute: %s", rate, strings.Join(top, ", "))
	d.g.alerts.Raise(a)
}

// GuardStatus is what `yumen guard status` shows.
type GuardStatus struct {
	On          bool              `json:"on"`
	Pinned      bool              `json:"pinned"` // goes on without the gateway
	Mode        bpf.Mode          `json:"mode,omitzero"`
	Interface   string            `json:"interface"`
	ConfirmBy   time.Time         `json:"confirm_by,omitzero"` // taken off then, unless confirmed
	Tier        string            `json:"tier"`                // that admits: xdp, nftables, user_space
	TierWhy     string            `json:"tier_why,omitzero"`   // why it is not the one before it
	Lacks       string            `json:"lacks,omitzero"`      // why it cannot run
	Hidden      []uint16          `json:"hidden"`
	Published   []string          `json:"published"`
	Management  []string          `json:"management"`
	Devices     int               `json:"devices"` // with tickets
	TicketsLost int               `json:"tickets_lost"`
	Denied      int               `json:"denied"`
	DropRate    float64           `json:"drops_per_second"`
	Opened      uint64            `json:"knocks_opened"`
	Home        uint64            `json:"knocks_home"` // opened by a long-lived key
	Refused     uint64            `json:"knocks_refused"`
	Passed      map[string]uint64 `json:"passed"`
	Dropped     map[string]uint64 `json:"dropped"`
}

func (d *guard) status() *GuardStatus {
	if d == nil {
		return nil
	}
	s := &GuardStatus{
		On: d.on.Load(), Interface: d.cfg.Interface, Hidden: d.hidden, Published: d.cfg.Published, Management: d.cfg.Management,
		Opened: d.results[0].Load(), Refused: d.results[1].Load(), Home: d.results[3].Load(), Passed: map[string]uint64{}, Dropped: map[string]uint64{},
	}
	s.Devices, s.TicketsLost = d.permits.count()
	d.mu.Lock()
	s.ConfirmBy = d.until
	d.mu.Unlock()
	d.watch.mu.Lock()
	s.DropRate = d.watch.current
	d.watch.mu.Unlock()
	s.Tier, s.TierWhy = d.admitsIn()
	if d.lacks != nil {
		s.Lacks = d.lacks.Error()
	}
	if d.tier == nil {
		return s
	}
	st := d.tier.State()
	s.Pinned, s.Mode, s.Denied = st.Pinned, st.Mode, d.tier.Denied()
	if c, err := d.tier.Counters(); err == nil {
		each(&c, func(_ bpf.Family, v bpf.Verdict, n uint64) {
			if v.Passed() {
				s.Passed[v.String()] += n
			} else {
				s.Dropped[v.String()] += n
			}
		})
	}
	return s
}

// each calls f for every counter that is not 0.
func each(c *bpf.Counters, f func(bpf.Family, bpf.Verdict, uint64)) {
	for family := range c {
		for v, n := range c[family] {
			if n > 0 && v > 0 {
				f(bpf.Family(family), bpf.Verdict(v), n)
			}
		}
	}
}

var (
	guardPackets = prometheus.NewDesc("yumen_guard_packets_total", "Packets that the guard judged.", []string{"family", "action", "reason"}, nil)
	guardOn      = prometheus.NewDesc("yumen_guard_on", "1 when the guard is attached.", nil, nil)
	guardTier    = prometheus.NewDesc("yumen_guard_tier", "1 for the tier that the guard runs in.", []string{"tier"}, nil)
	guardDevices = prometheus.NewDesc("yumen_guard_devices", "Devices whose tickets count.", nil, nil)
	guardLost    = prometheus.NewDesc("yumen_guard_tickets_lost_total", "Tickets that found no room.", nil, nil)
	guardDenied  = prometheus.NewDesc("yumen_guard_denied_networks", "Networks on the deny lists.", nil, nil)
	guardKnocks  = prometheus.NewDesc("yumen_guard_knocks_total", "Knocks that reached user space.", []string{"result"}, nil)
)

// Describe implements prometheus.Collector.
func (d *guard) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range []*prometheus.Desc{guardPackets, guardOn, guardTier, guardDevices, guardLost, guardDenied, guardKnocks} {
		ch <- m
	}
}

// Collect implements prometheus.Collector.
func (d *guard) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v)
	}
	count := func(desc *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), labels...)
	}
	on := 0.0
	if d.on.Load() {
		on = 1
	}
	gauge(guardOn, on)
	admits, _ := d.admitsIn()
	ch <- prometheus.MustNewConstMetric(guardTier, prometheus.GaugeValue, 1, admits)
	devices, lost := d.permits.count()
	gauge(guardDevices, float64(devices))
	count(guardLost, uint64(lost))
	for i, name := range []string{"opened", "refused", "not_opened", "opened_home"} {
		count(guardKnocks, d.results[i].Load(), name)
	}
	if d.tier == nil {
		return
	}
	gauge(guardDenied, float64(d.tier.Denied()))
	c, err := d.tier.Counters()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(guardPackets, err)
		return
	}
	each(&c, func(f bpf.Family, v bpf.Verdict, n uint64) {
		count(guardPackets, n, f.String(), v.Action(), v.String())
	})
}

// GuardOnRequest asks for the guard.
type GuardOnRequest struct {
	From netip.Addr `json:"from,omitzero"` // where the operator's session comes from; unset: this host
}

// GuardOnReply says how long it lasts without `guard confirm`; zero: for good.
type GuardOnReply struct {
	ConfirmBy time.Time `json:"confirm_by,omitzero"`
}

// guardAdmin adds the operator's verbs to mux.
func (g *Gateway) guardAdmin(mux *http.ServeMux) {
	mux.HandleFunc("GET /guard", func(w http.ResponseWriter, _ *http.Request) {
		if s := g.guard.status(); s != nil {
			adminsock.Reply(w, s)
			return
		}
		adminsock.Refuse(w, http.StatusConflict, fmt.Errorf("show guard: none is configured (add guard.interface to gateway.yaml)"))
	})
	mux.HandleFunc("GET /guard/top", func(w http.ResponseWriter, _ *http.Request) {
		out := []GuardSource{}
		if g.guard != nil {
			out = g.guard.watch.top(topShown)
		}
		adminsock.Reply(w, out)
	})
	mux.HandleFunc("GET /guard/drops", func(w http.ResponseWriter, _ *http.Request) {
		out := []GuardDrop{}
		if g.guard != nil {
			out = g.guard.watch.newest()
		}
		adminsock.Reply(w, out)
	})
	change := func(verb string, do func(r *http.Request) (any, error)) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			v, err := do(r)
			g.auditAdmin(r, verb, "", err)
			if err != nil {
				adminsock.Refuse(w, http.StatusConflict, err)
				return
			}
			adminsock.Reply(w, v)
		}
	}
	mux.HandleFunc("POST /guard/on", change("guard on", func(r *http.Request) (any, error) {
		var in GuardOnRequest
		if err := adminsock.Read(r, &in); err != nil {
			return nil, err
		}
		by, err := g.guard.switchOn(in.From)
		return GuardOnReply{by}, err
	}))
	mux.HandleFunc("POST /guard/confirm", change("guard confirm", func(*http.Request) (any, error) { return struct{}{}, g.guard.confirm() }))
	mux.HandleFunc("POST /guard/off", change("guard off", func(*http.Request) (any, error) { return struct{}{}, g.guard.switchOff() }))
}
