package gateway

import (
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yumen-zt/yumen/ctlclient"
)

// The histogram of the link has an edge at the 3 s of clause 7.2: what is
// beyond it can be told from what is not.
func TestGCR002_M48_LinkLatencyHasAnEdgeAtTheLimit(t *testing.T) {
	r := prometheus.NewRegistry()
	told := linkLatency(r)
	for range 5 {
		told(ctlclient.Delivery{Type: "T11", Took: ctlclient.LateAfter - time.Millisecond})
	}
	told(ctlclient.Delivery{Type: "T11", Took: ctlclient.LateAfter + time.Millisecond})
	told(ctlclient.Delivery{Type: "T11", Took: time.Millisecond, Outage: true})
	told(ctlclient.Delivery{Type: "T11", Took: time.Millisecond, Err: errors.New("none")})
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		m := f.GetMetric()[0]
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		if f.GetName() != "yumen_link_latency_seconds" || labels["link"] != "gateway-control" || labels["table"] != "T11" {
			continue
		}
		for _, b := range m.GetHistogram().GetBucket() {
			if b.GetUpperBound() == 3 {
				if b.GetCumulativeCount() != 5 || m.GetHistogram().GetSampleCount() != 6 {
					t.Errorf("%d of %d are within 3 s, want 5 of 6", b.GetCumulativeCount(), m.GetHistogram().GetSampleCount())
				}
				return
			}
		}
		t.Fatal("there is no edge at 3 s")
	}
	t.Fatal("there is no yumen_link_latency_seconds")
}
