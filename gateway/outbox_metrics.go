package gateway

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yumen-zt/yumen/ctlclient"
)

// outboxMetrics are the figures of the outbox, read when they are asked for.
type outboxMetrics struct {
	status func() ctlclient.OutboxStatus
	now    func() time.Time
}

var (
	outboxDesc = func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	outboxPending = outboxDesc("yumen_outbox_pending_records", "Records that wait for the control center.", "class")
	outboxBytes   = outboxDesc("yumen_outbox_bytes", "Bytes of the outbox on disk (payloads, while it is in memory).", "class")
	outboxDropped = outboxDesc("yumen_outbox_dropped_records_total", "Records that will never be sent, each in a gap.", "class", "reason")
	outboxLast    = outboxDesc("yumen_outbox_last_sequence", "Highest number given to a record.", "class")
	outboxAcked   = outboxDesc("yumen_outbox_acked_sequence", "Up to where the control center has signed for the records.", "class")
	outboxAge     = outboxDesc("yumen_outbox_oldest_age_seconds", "Age of the oldest record that waits; 0 when none does.", "class")
	outboxFull    = outboxDesc("yumen_outbox_full", "1 while the disk is full and only alerts and identity reports are kept.")
	outboxMemory  = outboxDesc("yumen_outbox_memory", "1 while nothing of the outbox is on disk.")
	outboxFaults  = outboxDesc("yumen_outbox_disk_faults_total", "Writes and syncs of the outbox that failed.")
)

// Describe implements [prometheus.Collector].
func (m *outboxMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{outboxPending, outboxBytes, outboxDropped, outboxLast, outboxAcked, outboxAge, outboxFull, outboxMemory, outboxFaults} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (m *outboxMetrics) Collect(ch chan<- prometheus.Metric) {
	s := m.status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	word := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, c := range s.Classes {
		gauge(outboxPending, float64(c.Pending), c.Class)
		gauge(outboxBytes, float64(c.Bytes), c.Class)
		gauge(outboxLast, float64(c.Last), c.Class)
		gauge(outboxAcked, float64(c.AckedTo), c.Class)
		age := 0.0
		if !c.Oldest.IsZero() && c.Pending > 0 {
			age = max(0, m.now().Sub(c.Oldest).Seconds())
		}
		gauge(outboxAge, age, c.Class)
		for why, n := range c.DroppedFor {
			count(outboxDropped, float64(n), c.Class, why)
		}
	}
	gauge(outboxFull, word(s.Full))
	gauge(outboxMemory, word(s.Memory))
	count(outboxFaults, float64(s.Failed))
}
