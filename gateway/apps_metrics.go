package gateway

import (
	"context"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// checkHealth runs the checks of the site's applications, and begins anew when
// a reload has put another site in place.
func (g *Gateway) checkHealth(ctx context.Context) error {
	for ctx.Err() == nil {
		of, stop := context.WithCancel(ctx)
		var checking sync.WaitGroup
		apps := g.site.Load().apps
		checking.Go(func() { apps.CheckHealth(of) })
		select {
		case <-ctx.Done():
		case <-g.moved:
		}
		stop()
		checking.Wait()
	}
	return nil
}

// appsMetrics are the figures of the applications as they are.
type appsMetrics struct{ g *Gateway }

var (
	descInHand    = prometheus.NewDesc("yumen_apps_requests_in_hand", "HTTP requests and WebSockets of an application now.", []string{"app"}, nil)
	descUpstreams = prometheus.NewDesc("yumen_apps_upstreams", "Upstreams of an application by state.", []string{"app", "state"}, nil)
	descEjections = prometheus.NewDesc("yumen_apps_ejections_total", "Times that an upstream of an application was passed over for its faults.", []string{"app"}, nil)
)

// Describe implements [prometheus.Collector].
func (m *appsMetrics) Describe(to chan<- *prometheus.Desc) {
	to <- descInHand
	to <- descUpstreams
	to <- descEjections
}

// Collect implements [prometheus.Collector].
func (m *appsMetrics) Collect(to chan<- prometheus.Metric) {
	now := m.g.now()
	for _, a := range m.g.site.Load().apps.All() {
		states, ejections := map[string]int{}, uint64(0)
		for _, u := range a.Upstreams {
			s := u.Status(now)
			states[s.State]++
			ejections += s.Ejections
		}
		to <- prometheus.MustNewConstMetric(descInHand, prometheus.GaugeValue, float64(a.InHand()), a.ID)
		to <- prometheus.MustNewConstMetric(descEjections, prometheus.CounterValue, float64(ejections), a.ID)
		for state, n := range states {
			to <- prometheus.MustNewConstMetric(descUpstreams, prometheus.GaugeValue, float64(n), a.ID, state)
		}
	}
}
