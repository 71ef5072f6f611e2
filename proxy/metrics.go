package proxy

import (
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests    *prometheus.CounterVec   // app, code
	refused     *prometheus.CounterVec   // reason
	connections *prometheus.CounterVec   // protocol
	bytes       *prometheus.CounterVec   // app, direction
	duration    *prometheus.HistogramVec // app
	inFlight    prometheus.Gauge
	cuts        *prometheus.CounterVec // reason
	panics      prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "yumen_proxy_" + name, Help: help}, labels)
	}
	m := &metrics{
		requests:    vec("requests_total", "Requests that ended.", "app", "code"),
		refused:     vec("refused_total", "Requests that were refused.", "reason"),
		connections: vec("connections_total", "Client connections.", "protocol"),
		bytes:       vec("body_bytes_total", "Bytes of bodies and tunnels.", "app", "direction"),
		cuts:        vec("cuts_total", "Requests that lost their right on the way.", "reason"),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "yumen_proxy_request_duration_seconds",
			Help: "From the head's arrival to the answer's end.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 10)}, []string{"app"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "yumen_proxy_requests_in_flight", Help: "Requests being served."}),
		panics:   prometheus.NewCounter(prometheus.CounterOpts{Name: "yumen_proxy_panics_total", Help: "Requests that panicked and were contained."}),
	}
	if reg == nil {
		return m, nil
	}
	err := errors.Join(register(reg, &m.requests), register(reg, &m.refused), register(reg, &m.connections),
		register(reg, &m.bytes), register(reg, &m.cuts), register(reg, &m.duration), register(reg, &m.inFlight), register(reg, &m.panics))
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return m, nil
}

// figures are those of one application's requests, or of requests to none.
type figures struct {
	app      string // its label
	requests counters
	in, out  prometheus.Counter // bytes
	duration prometheus.Observer
}

func (m *metrics) figures(app string) figures {
	return figures{
		app: app, in: m.bytes.WithLabelValues(app, "in"), out: m.bytes.WithLabelValues(app, "out"), duration: m.duration.WithLabelValues(app),
	}
}

// counters remember the counters of one application's requests by status; the
// usual ones have a place each.
type counters [31]atomic.Pointer[counter]

type counter struct {
	prometheus.Counter
	status int
}

// of returns the counter of app and status.
func (c *counters) of(m *metrics, app string, status int) prometheus.Counter {
	place := &c[uint(status)%uint(len(c))]
	if n := place.Load(); n != nil && n.status == status {
		return n.Counter
	}
	label := "none"
	if status != 0 {
		label = strconv.Itoa(status)
	}
	n := m.requests.WithLabelValues(app, label)
	place.Store(&counter{n, status})
	return n
}

// register registers *c, or takes the collector that is registered already:
// after a reload the counters go on.
func register[C prometheus.Collector](reg prometheus.Registerer, c *C) error {
	err := reg.Register(*c)
	var again prometheus.AlreadyRegisteredError
	if errors.As(err, &again) {
		if old, ok := again.ExistingCollector.(C); ok {
			*c = old
			return nil
		}
	}
	return err
}
