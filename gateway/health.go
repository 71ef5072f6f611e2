package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/yumen-zt/yumen/access"
)

// Health is the gateway's answer to "may traffic come here?".
type Health string

// The states of /healthz. A gateway that only waits for its first list is live
// and not ready; one that enforces a list without its control center is ready
// and stale.
const (
	Live  Health = "live"
	Ready Health = "ready"
	Stale Health = "ready-but-stale"
)

// Health returns the gateway's state now.
func (g *Gateway) Health() Health {
	stats := g.access.Stats()
	now := g.now()
	if g.access.Snapshot().NoList() || !stats.NotAfter.IsZero() && now.After(stats.NotAfter) {
		return Live
	}
	if g.link != nil && g.worst() != access.Fresh {
		return Stale
	}
	return Ready
}

const metricsConnections = 32

// serveMetrics serves /metrics and /healthz on a loopback address.
func (g *Gateway) serveMetrics(ctx context.Context, ln net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		h := g.Health()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if h == Live && r.URL.Query().Get("probe") != "live" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, h)
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	// Every process of the host may connect; it must not use up our descriptors.
	if err := s.Serve(netutil.LimitListener(ln, metricsConnections)); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
