package access

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yumen-zt/yumen/internal/reason"
)

// metrics are plain atomics, read when they are collected, so that a request
// pays for an addition and no more.
type metrics struct {
	a               *Access
	decisions       [1000]atomic.Uint64 // by reason
	cuts            [1000]atomic.Uint64 // by reason
	leases          [kinds]atomic.Int64
	refusedSessions atomic.Uint64

	cutTime   prometheus.Histogram
	applyTime prometheus.Histogram
}

var (
	descDecisions = prometheus.NewDesc("yumen_access_decisions_total", "Decisions, by reason.", []string{"reason"}, nil)
	descCuts      = prometheus.NewDesc("yumen_access_cuts_total", "Leases that were cut, by reason.", []string{"reason"}, nil)
	descLeases    = prometheus.NewDesc("yumen_access_leases", "Live leases, by kind of carrier.", []string{"kind"}, nil)
	descSessions  = prometheus.NewDesc("yumen_access_sessions", "Live sessions.", nil, nil)
	descRefused   = prometheus.NewDesc("yumen_access_sessions_refused_total", "Sessions that were not attached.", nil, nil)
	descRows      = prometheus.NewDesc("yumen_access_grant_rows", "Rows of the access grant list in force.", nil, nil)
	descFaults    = prometheus.NewDesc("yumen_access_list_faults", "Rows of the newest lists that could not be taken as they stand.", nil, nil)
	descFreshness = prometheus.NewDesc("yumen_access_freshness", "How old the lists are for an application: 0 fresh, 1 stale-ok, 2 stale-strict, 3 expired.", []string{"app"}, nil)
	descContact   = prometheus.NewDesc("yumen_access_contact_age_seconds", "Since the control center proved to be there.", nil, nil)
	descVersion   = prometheus.NewDesc("yumen_access_list_version", "Version of the list in force.", []string{"list"}, nil)
)

func newMetrics(a *Access, r prometheus.Registerer) *metrics {
	m := &metrics{a: a,
		cutTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "yumen_access_cut_duration_seconds", Help: "From the start of a change to the return of a carrier's Cut.",
			Buckets: []float64{.0001, .0005, .001, .0025, .005, .01, .02, .05, .1, .25, 1, 3},
		}),
		applyTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "yumen_access_apply_duration_seconds", Help: "From the start of a change to its being in force.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 3},
		}),
	}
	if r != nil {
		r.MustRegister(m, m.cutTime, m.applyTime)
	}
	return m
}

func (m *metrics) decided(r reason.Reason) { m.decisions[min(int(r), len(m.decisions)-1)].Add(1) }

func (m *metrics) cut(r reason.Reason, d time.Duration) {
	m.cuts[min(int(r), len(m.cuts)-1)].Add(1)
	m.cutTime.Observe(d.Seconds())
}

func (m *metrics) applied(d time.Duration) { m.applyTime.Observe(d.Seconds()) }

// Describe is prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descDecisions, descCuts, descLeases, descSessions, descRefused, descRows, descFaults, descVersion, descFreshness, descContact} {
		ch <- d
	}
}

// Collect is prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	byReason := func(d *prometheus.Desc, list *[1000]atomic.Uint64) {
		for i := range list {
			if n := list[i].Load(); n != 0 {
				ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), reason.Reason(i).String())
			}
		}
	}
	byReason(descDecisions, &m.decisions)
	byReason(descCuts, &m.cuts)
	for k := range m.leases {
		ch <- prometheus.MustNewConstMetric(descLeases, prometheus.GaugeValue, float64(m.leases[k].Load()), Kind(k).String())
	}
	st := m.a.Stats()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(descSessions, float64(st.Sessions))
	ch <- prometheus.MustNewConstMetric(descRefused, prometheus.CounterValue, float64(m.refusedSessions.Load()))
	gauge(descRows, float64(st.Rows))
	gauge(descFaults, float64(st.Faults))
	now := m.a.cfg.Now()
	if age, ok := m.a.age(now); ok {
		gauge(descContact, age.Seconds())
	}
	if s := m.a.state.Load(); s.stale != nil {
		for i, id := range s.ids {
			gauge(descFreshness, float64(m.a.freshness(s, App{uint32(i + 1)}, now)), id)
		}
	}
	gauge(descVersion, float64(st.Version), "grants")
	gauge(descVersion, float64(st.PolicyVersion), "policies")
}
