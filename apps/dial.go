package apps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

// RefusedError says that the address rules forbid a dial. Nothing was sent to
// the address.
type RefusedError struct {
	AppID string
	Addr  netip.AddrPort // the address that a name led to
	Rule  string         // "loopback", "link-local" ...
}

// Error names application, address, rule and remedy.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("dial %s for %s: %s address refused (allow_addresses permits it)", e.Addr, e.AppID, e.Rule)
}

// Reason returns reason.AddressRefused.
func (e *RefusedError) Reason() reason.Reason { return reason.AddressRefused }

type dialer struct {
	cfg     *Config
	refused prometheus.Counter
	faults  prometheus.Counter
	checks  *prometheus.CounterVec // result
}

func (d *dialer) init(cfg *Config) error {
	d.cfg = cfg
	d.refused = prometheus.NewCounter(prometheus.CounterOpts{Name: "yumen_apps_dials_refused_total", Help: "Dials that the address rules refused."})
	d.faults = prometheus.NewCounter(prometheus.CounterOpts{Name: "yumen_apps_dial_faults_total", Help: "Dials to applications that failed."})
	d.checks = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "yumen_apps_health_checks_total", Help: "Health checks of upstreams."}, []string{"result"})
	if cfg.Registerer == nil {
		return nil
	}
	err := errors.Join(register(cfg.Registerer, &d.refused), register(cfg.Registerer, &d.faults), register(cfg.Registerer, &d.checks))
	if err != nil {
		return fmt.Errorf("register metrics of the applications: %w", err)
	}
	return nil
}

// register registers *c, or takes the collector that is registered already:
// after a reload the counters go on.
func register[C prometheus.Collector](reg prometheus.Registerer, c *C) error {
	err := reg.Register(*c)
	var again prometheus.AlreadyRegisteredError
	if errors.As(err, &again) {
		*c = again.ExistingCollector.(C)
		return nil
	}
	return err
}

// Dial connects to addr ("host:port") for app. network is "tcp" or "udp". It
// is the only way from the gateway to an application: the name is resolved
// anew, each address that is tried is checked against the address rules before
// the first packet, and the connect has its limit. A refusal is a
// [*RefusedError] and raises an alert. TCP flows of an application with PROXY
// protocol begin with its header, made from the source of [WithSource].
func (r *Registry) Dial(ctx context.Context, app *App, network, addr string) (net.Conn, error) {
	if app == nil {
		return nil, errors.New("dial: no application")
	}
	if network != "tcp" && network != "udp" {
		return nil, fmt.Errorf("dial %s for %s: network %q is not tcp or udp", addr, app.ID, network)
	}
	nd := net.Dialer{
		Timeout:  cmp.Or(app.connectTimeout, r.cfg.ConnectTimeout),
		Resolver: r.cfg.Resolver,
		Control: func(_, address string, _ syscall.RawConn) error {
			return r.checkAddress(app, address)
		},
	}
	nd.SetMultipathTCP(false)
	c, err := nd.DialContext(ctx, network, addr)
	if err != nil {
		return nil, r.dialFault(app, addr, err)
	}
	if network == "tcp" && app.ProxyProtocol {
		if err := writeProxyHeader(ctx, c); err != nil {
			c.Close()
			return nil, fmt.Errorf("dial %s for %s: send PROXY header: %w", addr, app.ID, err)
		}
	}
	return c, nil
}

func (r *Registry) dialFault(app *App, addr string, err error) error {
	var refused *RefusedError
	if !errors.As(err, &refused) {
		r.dialer.faults.Inc()
		return fmt.Errorf("dial %s for %s: %w", addr, app.ID, err)
	}
	r.dialer.refused.Inc()
	r.cfg.Logger.Warn("upstream address refused", zap.String("app_id", app.ID), zap.String("upstream", addr),
		zap.Stringer("address", refused.Addr), zap.String("rule", refused.Rule), zap.Stringer("reason", reason.AddressRefused))
	r.cfg.Alerts.Raise(alert.Alert{
		Code: alert.DestinationFault, Time: r.cfg.Now(), Reason: reason.AddressRefused, AppID: app.ID,
		Detail: fmt.Sprintf("%s leads to %s: %s", addr, refused.Addr, refused.Rule),
	})
	return refused
}

// checkAddress is the dialer's Control: address is what the kernel is about to
// be given.
func (r *Registry) checkAddress(app *App, address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("check address %q: %w", address, err)
	}
	if r.own(ap) {
		return &RefusedError{AppID: app.ID, Addr: ap, Rule: "own listener"}
	}
	rule := addressRule(ap.Addr())
	if rule == "" || app.permits(ap.Addr()) {
		return nil
	}
	return &RefusedError{AppID: app.ID, Addr: ap, Rule: rule}
}
