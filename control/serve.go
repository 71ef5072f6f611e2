package control

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/wire"
)

// Paths of the standard's links (docs/binding-v1.md).
const (
	gatewayBase = "/ztna/v1/gateway"
	agentBase   = "/ztna/v1/agent"
	enrolPath   = "/ztna/v1/enrol"
)

// handler returns the paths of the links.
func (s *Server) handler() http.Handler {
	m := http.NewServeMux()
	gateway, agent := model.Gateway, model.Agent
	m.HandleFunc("POST "+gatewayBase+"/identity", s.message(gateway, "T4", s.identity))
	m.HandleFunc("GET "+gatewayBase+"/lists/grants", s.list(wire.GrantsList))
	m.HandleFunc("GET "+gatewayBase+"/lists/policies", s.list(wire.PoliciesList))
	m.HandleFunc("GET "+gatewayBase+"/events", s.events)
	m.HandleFunc("POST "+gatewayBase+"/acks", s.message(gateway, wire.TypeAck, s.ack))
	m.HandleFunc("POST "+gatewayBase+"/status", s.message(gateway, "T10", s.gatewayStatus))
	m.HandleFunc("POST "+gatewayBase+"/alerts", s.message(gateway, "T11", s.gatewayAlert))
	m.HandleFunc("POST "+gatewayBase+"/logouts", s.message(gateway, wire.TypeLogout, s.logout))
	m.HandleFunc("POST "+gatewayBase+"/subjects", s.message(gateway, wire.TypeSubject, s.subject))
	m.HandleFunc("POST "+agentBase+"/authentication", s.message(agent, "T16", s.authenticate))
	m.HandleFunc("GET "+agentBase+"/resources", s.resources)
	m.HandleFunc("POST "+agentBase+"/report", s.message(agent, wire.TypeReport, s.report))
	m.HandleFunc("POST "+agentBase+"/status", s.message(agent, "T21", s.agentStatus))
	m.HandleFunc("POST "+agentBase+"/alerts", s.message(agent, "T22", s.agentAlert))
	for base, kind := range map[string]string{gatewayBase: gateway, agentBase: agent} {
		m.HandleFunc("POST "+base+"/outbox", s.message(kind, wire.TypeOutbox, s.outbox))
	}
	m.HandleFunc("POST "+enrolPath, s.enrol)
	all := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		m.ServeHTTP(w, r)
	})
	if s.chaos != nil {
		return s.chaos.wrap(all)
	}
	return all
}

// Run serves until ctx ends and returns after every goroutine of s has ended.
func (s *Server) Run(ctx context.Context) error {
	if !s.started.CompareAndSwap(false, true) {
		return errors.New("run control center: it ran already (make a new one)")
	}
	defer s.close()
	if s.chaos != nil {
		s.chaos.warn("allowed")
		defer s.chaos.off()
	}
	var addrs Addrs
	var links, logins []net.Listener
	closeAll := func() {
		for _, ln := range append(links, logins...) {
			ln.Close()
		}
	}
	open := func(addresses []string, listeners *[]net.Listener, at *[]net.Addr) error {
		for _, a := range addresses {
			ln, err := s.cfg.Network("tcp", a)
			if err != nil {
				return fmt.Errorf("run control center: %w (is another process on %s?)", err, a)
			}
			*listeners, *at = append(*listeners, ln), append(*at, ln.Addr())
		}
		return nil
	}
	err := open(s.cfg.Listen, &links, &addrs.Links)
	if err == nil && s.cfg.IDP != nil {
		err = open(s.cfg.IDP.Listen, &logins, &addrs.IDP)
	}
	var metrics, admin net.Listener
	if err == nil && s.cfg.MetricsListen != "" {
		if err = open([]string{s.cfg.MetricsListen}, &logins, &addrs.Metrics); err == nil {
			metrics, logins = logins[len(logins)-1], logins[:len(logins)-1]
		}
	}
	if err == nil {
		admin, err = s.cfg.Network("unix", s.cfg.AdminSocket)
	}
	if err != nil {
		closeAll()
		if metrics != nil {
			metrics.Close()
		}
		return err
	}
	s.addrs.Store(&addrs)

	// The store and the journal end after everything that writes to them.
	back, stopBack := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBack()
	var behind errgroup.Group
	front, fctx := errgroup.WithContext(ctx)
	broken := make(chan error, 2)
	behind.Go(func() error {
		err := s.follow(back)
		if err != nil {
			broken <- err
		}
		return err
	})
	front.Go(func() error {
		select {
		case err := <-broken:
			return err
		case <-fctx.Done():
			return nil
		}
	})
	if s.journal != nil {
		behind.Go(func() error {
			err := s.journal.run(back)
			if err != nil {
				broken <- err // without an audit nothing is done
			}
			return err
		})
	}
	for _, ln := range links {
		front.Go(func() error { return s.serveHTTPS(fctx, ln, s.links, s.handler()) })
	}
	for _, ln := range logins {
		front.Go(func() error { return s.serveHTTPS(fctx, ln, s.login, s.idp) })
	}
	if metrics != nil {
		front.Go(func() error { return s.serveMetrics(fctx, metrics) })
	}
	front.Go(func() error { return adminsock.Serve(fctx, admin, s.adminHandler()) })
	front.Go(func() error { return s.sweep(fctx) })
	s.audit.Write(&audit.Record{Time: s.cfg.Now(), Kind: audit.System, Remote: "local", Object: "start", Allowed: true, Result: "ok"})
	s.log.Info("control center runs", zap.Stringers("links", addrs.Links), zap.Stringers("login", addrs.IDP), zap.String("admin_socket", s.cfg.AdminSocket))
	close(s.ready)

	err = front.Wait()
	s.audit.Write(&audit.Record{Time: s.cfg.Now(), Kind: audit.System, Remote: "local", Object: "stop", Allowed: true, Result: "ok"})
	stopBack()
	return errors.Join(err, behind.Wait())
}

// serveHTTPS serves h on ln by TLS and TLCP until ctx ends, and then lets the
// requests in progress end for two seconds.
func (s *Server) serveHTTPS(ctx context.Context, ln net.Listener, f face, h http.Handler) error {
	p := newPort(ln, f, s.handshakeFailed, &s.port)
	defer p.Close()
	srv := &http.Server{
		Handler: h, TLSConfig: f.tls.Clone(), // says whether there is HTTP/2; net/http changes it
		ConnContext:       withChannel,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 90 * time.Second, MaxHeaderBytes: 32 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    stdlog.New(quiet{s.log}, "", 0),
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(p)
	if !stop() {
		<-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", ln.Addr(), err)
}

// quiet turns net/http's own lines (a failed handshake, a broken peer) into
// debug lines.
type quiet struct{ log *zap.Logger }

func (q quiet) Write(line []byte) (int, error) {
	q.log.Debug("connection", zap.ByteString("error", line))
	return len(line), nil
}
