package listen

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/reason"
)

type metrics struct {
	handshakes *prometheus.CounterVec
	suites     *prometheus.CounterVec
	drops      *prometheus.CounterVec
	untold     prometheus.Counter
	retries    prometheus.Counter
}

func newMetrics(r prometheus.Registerer, p *Port) *metrics {
	m := &metrics{
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "yumen_handshakes_total", Help: "Handshakes by protocol and result; result is ok or the reason.",
		}, []string{"protocol", "result"}),
		suites: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "yumen_handshake_suites_total", Help: "Finished handshakes by protocol and cipher suite.",
		}, []string{"protocol", "suite"}),
		drops: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "yumen_drops_total", Help: "Connections refused before a byte was read, by layer and reason.",
		}, []string{"layer", "reason"}),
		untold: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "yumen_handshake_failures_untold_total", Help: "Failed handshakes that stand in no log line and no audit record, because there were too many.",
		}),
	}
	m.retries = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "yumen_quic_retries_total", Help: "QUIC connection attempts that were asked to prove their address first.",
	})
	if r == nil {
		return m
	}
	r.MustRegister(m.handshakes, m.suites, m.drops, m.untold, m.retries,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "yumen_connections", Help: "Connections that are open."},
			func() float64 { return float64(len(p.slots)) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "yumen_connections_half_open", Help: "Connections without a finished handshake."},
			func() float64 { n, _ := p.halfOpenSize(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "yumen_connections_half_open_bytes", Help: "Memory that connections without a finished handshake are reckoned to take."},
			func() float64 { _, b := p.halfOpenSize(); return float64(b) }))
	return m
}

func (m *metrics) handshake(protocol policy.Protocol, r reason.Reason) {
	m.handshakes.WithLabelValues(protocol.String(), r.String()).Inc()
}

func (m *metrics) drop(r reason.Reason) { m.drops.WithLabelValues("listen", r.String()).Inc() }

// halfOpenSize counts TCP and QUIC together.
func (p *Port) halfOpenSize() (n, bytes int) {
	n, bytes = p.half.size()
	for _, u := range p.packets {
		more, cost := u.half.size()
		n, bytes = n+more, bytes+cost
	}
	return n, bytes
}
