package apps

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

// HealthConfig says how upstreams are looked at when nobody asks for them. The
// zero value looks at none: what requests find is all that is known then.
type HealthConfig struct {
	Path     string        `yaml:"path"`     // of a GET that must be answered by 200 to 399, http and https; default: connecting is enough
	Interval time.Duration `yaml:"interval"` // default 5s, with path; without both there are no checks
	Timeout  time.Duration `yaml:"timeout"`  // of one check; default 2s
	Rise     int           `yaml:"rise"`     // good checks in a row that bring an upstream back; default 2
	Fall     int           `yaml:"fall"`     // failed ones in a row that take it out; default 3
}

func (c *HealthConfig) on() bool { return c.Path != "" || c.Interval > 0 }

func (c HealthConfig) withDefaults() HealthConfig {
	if c.Interval == 0 {
		c.Interval = 5 * time.Second
	}
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Second
	}
	if c.Rise == 0 {
		c.Rise = 2
	}
	if c.Fall == 0 {
		c.Fall = 3
	}
	return c
}

func (c *HealthConfig) validate(at string, kinds map[string]bool, fault func(path, format string, args ...any)) {
	if p := c.Path; p != "" {
		if u, err := url.ParseRequestURI(p); err != nil || !strings.HasPrefix(p, "/") || u.Host != "" {
			fault(at+".path", "%q is no path such as /health", p)
		}
		if !kinds["http"] && !kinds["https"] {
			fault(at+".path", "there is no http upstream (set interval alone: connecting is the check then)")
		}
	}
	if kinds["udp"] && len(kinds) == 1 && c.on() {
		fault(at, "udp upstreams cannot be checked")
	}
	if c.Interval < 0 || c.Interval > 0 && c.Interval < 100*time.Millisecond {
		fault(at+".interval", "%v: at least 100ms", c.Interval)
	}
	if c.Timeout < 0 {
		fault(at+".timeout", "negative")
	}
	if c.Rise < 0 || c.Fall < 0 {
		fault(at, "rise and fall count from 1")
	}
}

// CheckHealth looks at the upstreams of every application that is configured so,
// until ctx is done. It returns when no check runs any more.
func (r *Registry) CheckHealth(ctx context.Context) {
	var all sync.WaitGroup
	for _, a := range r.all {
		if !a.health.on() {
			continue
		}
		for _, u := range a.Upstreams {
			if u.Scheme != "udp" {
				all.Go(func() { r.watch(ctx, a, u) })
			}
		}
	}
	all.Wait()
}

// watch is the goroutine of one upstream.
func (r *Registry) watch(ctx context.Context, a *App, u *Upstream) {
	c := a.health.withDefaults()
	probe := r.prober(a, u, &c)
	defer probe.close()
	timer := time.NewTimer(rand.N(c.Interval)) // not all at once
	defer timer.Stop()
	row := 0 // results in a row that differ from the state
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		one, cancel := context.WithTimeout(ctx, c.Timeout)
		err := probe.check(one)
		cancel()
		if ctx.Err() != nil {
			return
		}
		r.checks(err == nil)
		if down := u.down.Load(); (err == nil) != down {
			row = 0
		} else if row++; down && row >= c.Rise || !down && row >= c.Fall {
			row = 0
			r.turn(a, u, err)
		}
		timer.Reset(c.Interval)
	}
}

func (r *Registry) checks(ok bool) {
	result := "ok"
	if !ok {
		result = "failed"
	}
	r.dialer.checks.WithLabelValues(result).Inc()
}

// turn takes u out, or brings it back when err is nil.
func (r *Registry) turn(a *App, u *Upstream, err error) {
	fields := []zap.Field{zap.String("app_id", a.ID), zap.Stringer("upstream", u)}
	wasDown := a.Down(u.Scheme)
	raise := func(code alert.Code, detail string) {
		r.cfg.Alerts.Raise(alert.Alert{Code: code, Time: r.cfg.Now(), Reason: reason.UpstreamUnreachable, AppID: a.ID, Detail: detail})
	}
	if err == nil {
		u.down.Store(false)
		u.ejected.Store(0)
		u.times.Store(0)
		r.cfg.Logger.Info("upstream is back", fields...)
		if wasDown {
			raise(alert.AppBack, u.String()+" answers again")
		}
		return
	}
	cause := err.Error()
	u.cause.Store(&cause)
	u.down.Store(true)
	r.cfg.Logger.Warn("upstream is down", append(fields, zap.Error(err), zap.Stringer("reason", reason.UpstreamUnreachable))...)
	if a.Down(u.Scheme) {
		raise(alert.AppDown, "every upstream fails its checks: "+cause)
	}
}

// prober checks one upstream, over connections of the registry's own dialer.
type prober struct {
	check func(context.Context) error
	close func()
}

func (r *Registry) prober(a *App, u *Upstream, c *HealthConfig) prober {
	dial := func(ctx context.Context) (net.Conn, error) {
		raw, err := r.Dial(ctx, a, "tcp", u.Addr())
		if err != nil || u.Scheme != "https" {
			return raw, err
		}
		alpn := ""
		if a.HTTP2 {
			alpn = "h2"
		}
		return a.Secure(ctx, raw, u.Host, alpn)
	}
	if c.Path == "" || u.Scheme == "tcp" {
		return prober{func(ctx context.Context) error {
			conn, err := dial(ctx)
			if err != nil {
				return err
			}
			return conn.Close()
		}, func() {}}
	}
	t := &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DialTLSContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DisableCompression: true, DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10,
		Protocols: new(http.Protocols),
	}
	if a.HTTP2 {
		t.Protocols.SetHTTP2(true)
		t.Protocols.SetUnencryptedHTTP2(true)
	} else {
		t.Protocols.SetHTTP1(true)
	}
	host := a.HostHeader
	if host == "" {
		host = a.Hosts[0]
	}
	return prober{func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String()+c.Path, nil)
		if err != nil {
			return err
		}
		req.Host = host
		req.Header.Set("User-Agent", "yumen-health")
		res, err := t.RoundTrip(req)
		if err != nil {
			return healthFault(ctx, err, c.Timeout)
		}
		res.Body.Close()
		if res.StatusCode < 200 || res.StatusCode > 399 {
			return fmt.Errorf("check %s%s: status %d", u, c.Path, res.StatusCode)
		}
		return nil
	}, t.CloseIdleConnections}
}

func healthFault(ctx context.Context, err error, limit time.Duration) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %v: %w", limit, err)
	}
	return err
}
