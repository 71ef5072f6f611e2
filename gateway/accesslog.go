package gateway

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/yumen-zt/yumen/internal/audit"
)

// accessLogMetrics are the figures of the access log.
func accessLogMetrics(l *audit.AccessLog) []prometheus.Collector {
	count := func(name, help string, of func() uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(of()) })
	}
	return []prometheus.Collector{
		count("yumen_access_log_written_total", "Requests in the access log.", func() uint64 { n, _ := l.Stats(); return n }),
		count("yumen_access_log_dropped_total", "Requests that the access log had no room for.", func() uint64 { _, n := l.Stats(); return n }),
	}
}
