package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/yumen-zt/yumen/internal/alert"
)

// collector shows [Server.Status] as metrics, read when somebody asks.
type collector struct{ s *Server }

var (
	descGateway = func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("yumen_control_gateway_"+name, help, []string{"gateway"}, nil)
	}
	descTotal = func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("yumen_control_"+name, help, nil, nil)
	}
	metricUp       = descGateway("connected", "1 while the gateway's push stream is open.")
	metricIdentity = descGateway("identity_age_seconds", "Time since the last Table 4 (§7.2: at most 60 s).")
	metricStatus   = descGateway("status_age_seconds", "Time since the last Table 10 (§7.3.4).")
	metricLag      = descGateway("grants_lag_revisions", "Revisions between the grants and what the gateway acknowledged.")
	metricShakes   = prometheus.NewDesc("yumen_control_handshakes_total", "Connections to the ports, by what became of them.", []string{"result", "reason"}, nil)
	metricPush     = descGateway("push_seconds", "Commit to write of the newest push.")
	totals         = []struct {
		desc  *prometheus.Desc
		kind  prometheus.ValueType
		value func(*Status) float64
	}{
		{descTotal("revision", "Revision of the store."), prometheus.GaugeValue, func(s *Status) float64 { return float64(s.Revision) }},
		{descTotal("rows", "Rows of the access grant list."), prometheus.GaugeValue, func(s *Status) float64 { return float64(s.Rows) }},
		{descTotal("sessions", "Users who are signed in, by device."), prometheus.GaugeValue, func(s *Status) float64 { return float64(s.Sessions) }},
		{descTotal("locks", "Locks in force."), prometheus.GaugeValue, func(s *Status) float64 { return float64(s.Locks) }},
		{descTotal("messages_total", "Messages that arrived."), prometheus.CounterValue, func(s *Status) float64 { return float64(s.Messages) }},
		{descTotal("messages_refused_total", "Messages and requests that were refused."), prometheus.CounterValue, func(s *Status) float64 { return float64(s.Refused) }},
		{descTotal("messages_repeated_total", "Messages that were repeats."), prometheus.CounterValue, func(s *Status) float64 { return float64(s.Repeats) }},
		{descTotal("deltas_total", "Deltas that were pushed."), prometheus.CounterValue, func(s *Status) float64 { return float64(s.Deltas) }},
		{descTotal("resyncs_total", "Streams that were told to pull."), prometheus.CounterValue, func(s *Status) float64 { return float64(s.Resyncs) }},
		{descTotal("state_differed_total", "Reports of gateways that had something else in force than they were given."), prometheus.CounterValue, func(s *Status) float64 { return float64(s.Differed) }},
		{descTotal("lists_total", "Lists that were sent."), prometheus.CounterValue, func(s *Status) float64 { return float64(s.Lists) }},
		{descTotal("audit_dropped_total", "Audit records that were lost."), prometheus.CounterValue, func(s *Status) float64 { return float64(s.AuditDropped) }},
	}
)

// Describe implements [prometheus.Collector].
func (c collector) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, out) }

// Collect implements [prometheus.Collector].
func (c collector) Collect(out chan<- prometheus.Metric) {
	st := c.s.Status()
	for _, t := range totals {
		out <- prometheus.MustNewConstMetric(t.desc, t.kind, t.value(&st))
	}
	for result, n := range map[string]uint64{"tls": st.Handshakes.TLS, "tlcp": st.Handshakes.TLCP, "refused": st.Handshakes.Refused} {
		out <- prometheus.MustNewConstMetric(metricShakes, prometheus.CounterValue, float64(n), result, "")
	}
	for why, n := range st.Handshakes.Reasons {
		out <- prometheus.MustNewConstMetric(metricShakes, prometheus.CounterValue, float64(n), "failed", why)
	}
	age := func(d *prometheus.Desc, at time.Time, id string) {
		if !at.IsZero() {
			out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, st.Time.Sub(at).Seconds(), id)
		}
	}
	for _, g := range st.Gateways {
		up := 0.0
		if g.Connected {
			up = 1
		}
		out <- prometheus.MustNewConstMetric(metricUp, prometheus.GaugeValue, up, g.ID)
		age(metricIdentity, g.LastIdentity, g.ID)
		age(metricStatus, g.LastStatus, g.ID)
		if g.GrantsAcked > 0 {
			out <- prometheus.MustNewConstMetric(metricLag, prometheus.GaugeValue, float64(st.GrantsVersion-min(g.GrantsAcked, st.GrantsVersion)), g.ID)
		}
		if g.LastDelivery > 0 {
			out <- prometheus.MustNewConstMetric(metricPush, prometheus.GaugeValue, g.LastDelivery.Seconds(), g.ID)
		}
	}
}

// lateAfter is the delay that clause 7.2 allows a message.
const lateAfter = 3 * time.Second

// newPushLatency returns the histogram of pushed changes, from the commit to the
// gateway's acknowledgement.
func newPushLatency() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "yumen_link_latency_seconds", Help: "Messages of a link: made to answered (§7.2: at most 3 s).",
		Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2, lateAfter.Seconds(), 5, 10, 30},
	}, []string{"link", "table"})
}

// delivered times a change of the grants that a gateway has acknowledged. A
// change that was committed before its stream was open is not timed.
func (s *Server) delivered(gateway string, version uint64) {
	took, ok := s.hub.tookTo(gateway, version)
	if !ok {
		return
	}
	s.pushed.WithLabelValues("control-gateway", "T7").Observe(took.Seconds())
	if took >= lateAfter {
		s.cfg.Alerts.Raise(alert.Alert{Code: alert.DeliveryLate, Time: s.cfg.Now(), Detail: fmt.Sprintf("change %d took %d ms to %s", version, took.Milliseconds(), gateway)})
	}
}

// serveMetrics serves /metrics on ln until ctx ends.
func (s *Server) serveMetrics(ctx context.Context, ln net.Listener) error {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collector{s}, s.pushed, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
