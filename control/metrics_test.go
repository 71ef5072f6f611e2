package control

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestMetricsShowTheLinks(t *testing.T) {
	s := newSite(t, func(c *Config) { c.MetricsListen = "127.0.0.1:0" })
	p := s.gw.stream("").begun()
	s.do("POST", "/v1/locks", NewLock{Kind: "session", ID: "x"}, nil)
	d, _ := p.delta()
	s.gw.ackGrants(d.To)
	resp, err := http.Get("http://" + s.s.Addrs().Metrics[0].String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	for _, want := range []string{`yumen_control_gateway_connected{gateway="GW000000001"} 1`, `yumen_control_gateway_grants_lag_revisions{gateway="GW000000001"} 0`,
		"yumen_control_deltas_total 1", "yumen_control_locks 1", "yumen_control_gateway_identity_age_seconds", "yumen_control_gateway_push_seconds"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}
