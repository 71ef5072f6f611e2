package tunnel

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	hellos      prometheus.Counter
	closed      *prometheus.CounterVec // reason
	flows       *prometheus.CounterVec // network, reason
	traffic     *prometheus.CounterVec // direction
	notices     prometheus.Counter
	noticesLost prometheus.Counter
	names       prometheus.Counter
}

func (m *metrics) init(s *Server, r prometheus.Registerer) error {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "yumen_tunnel_" + name, Help: help})
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "yumen_tunnel_" + name, Help: help}, labels)
	}
	m.hellos = counter("hellos_accepted_total", "Tunnels whose hello was accepted.")
	m.closed = vec("closed_total", "Tunnels that ended, by reason.", "reason")
	m.flows = vec("flows_total", "Flows that ended or were refused, by network and reason.", "network", "reason")
	m.traffic = vec("bytes_total", "Payload bytes of ended flows: in from agents, out to agents.", "direction")
	m.notices = counter("notices_total", "Notices (Table 15) sent.")
	m.noticesLost = counter("notices_dropped_total", "Notices beyond a tunnel's allowance, or that could not be sent.")
	m.names = counter("app_name_mismatches_total", "Access requests whose appName is not the application's.")
	open := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "yumen_tunnel_open", Help: "Open tunnels."}, func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return float64(len(s.tunnels))
	})
	if r == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{m.hellos, m.closed, m.flows, m.traffic, m.notices, m.noticesLost, m.names, open} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics of tunnels: %w", err)
		}
	}
	return nil
}

func (m *metrics) bytes(direction string) prometheus.Counter {
	return m.traffic.WithLabelValues(direction)
}
