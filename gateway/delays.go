package gateway

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/yumen-zt/yumen/ctlclient"
)

// linkLatency times the messages of the link to the control center, from their
// making to the verified answer. One of its edges is the limit of clause 7.2;
// the link raises 2.015 for what is beyond. What was made while the link was
// known to be down is not in it.
func linkLatency(r prometheus.Registerer) func(ctlclient.Delivery) {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "yumen_link_latency_seconds", Help: "Messages of a link: made to answered (§7.2: at most 3 s).",
		Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2, ctlclient.LateAfter.Seconds(), 5, 10, 30},
	}, []string{"link", "table"})
	r.MustRegister(h)
	return func(d ctlclient.Delivery) {
		if !d.Outage && d.Err == nil {
			h.WithLabelValues("gateway-control", d.Type).Observe(d.Took.Seconds())
		}
	}
}

// hedgeMetrics counts the tries of messages after the first, read when they are
// asked for.
type hedgeMetrics struct{ status func() ctlclient.Hedges }

var linkHedges = prometheus.NewDesc("yumen_link_hedges_total", "Tries of messages after the first, for want of an answer.", []string{"link", "result"}, nil)

// Describe implements [prometheus.Collector].
func (hedgeMetrics) Describe(ch chan<- *prometheus.Desc) { ch <- linkHedges }

// Collect implements [prometheus.Collector].
func (m hedgeMetrics) Collect(ch chan<- prometheus.Metric) {
	h := m.status()
	for result, n := range map[string]uint64{"sent": h.Sent, "won": h.Won, "withheld": h.Withheld} {
		ch <- prometheus.MustNewConstMetric(linkHedges, prometheus.CounterValue, float64(n), "gateway-control", result)
	}
}
