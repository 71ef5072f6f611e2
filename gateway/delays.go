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
