package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/yumen-zt/yumen/agent"
	"github.com/yumen-zt/yumen/apps/link"
	"github.com/yumen-zt/yumen/bpf"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/gateway"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/wire"
)

// Site is a demo that is laid out. Start it with Run.
type Site struct {
	Info *Info
	own  bool // the portal is the demo's own application
	log  *zap.Logger

	outside   *outside // nil: no guard
	unguarded error    // why

	mu      sync.Mutex
	control *controlRole // guarded by mu
}

// Open lays the site out, or takes the one that is in the folder.
func Open(ctx context.Context, o Options, log *zap.Logger) (*Site, error) {
	if log == nil {
		log = zap.NewNop()
	}
	info, err := ReadInfo(o.Dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if info, err = layout(ctx, o); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case o.App != "":
		return nil, fmt.Errorf("open demo: %s holds a site already (leave out --app, or take another folder)", o.Dir)
	}
	return &Site{Info: info, own: o.App == "", log: log}, nil
}

// Run runs every role until ctx is done. ready is called once when the site
// serves and the agent's user is signed in.
func (s *Site) Run(ctx context.Context, ready func()) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.control = &controlRole{config: s.Info.Control.Config}
	if err := s.control.start(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	part := func(name string, f func(context.Context) error) {
		g.Go(func() error {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	if s.own {
		part("portal", func(ctx context.Context) error {
			return serveHTTP(ctx, hostPort(s.Info.App(Portal).Backend), backend(s.Info.App(Portal).Name))
		})
	}
	part("finance", func(ctx context.Context) error {
		return serveHTTP(ctx, hostPort(s.Info.App(Finance).Backend), backend(s.Info.App(Finance).Name))
	})
	part("echo", func(ctx context.Context) error { return serveEcho(ctx, hostPort(s.Info.App(Echo).Backend)) })

	gw, err := s.gateway(ctx)
	defer func() {
		if s.outside != nil {
			err = errors.Join(err, s.outside.close())
		}
	}()
	if err == nil {
		part("gateway", gw.Run)
		part("connector", s.connector)
		part("agent", s.agent)
		part("demo socket", s.serveSocket)
		part("sign-in", func(ctx context.Context) error {
			if err := s.signIn(ctx); err != nil {
				return err
			}
			ready()
			return nil
		})
	}
	err = errors.Join(err, g.Wait())
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(err, s.control.stop())
}

// gateway makes the gateway, behind a guard where the system gives the demo a
// namespace and can run one.
func (s *Site) gateway(ctx context.Context) (*gateway.Gateway, error) {
	o := gateway.Options{Logger: s.log.Named("gateway")}
	if s.outside, s.unguarded = openOutside(s.Info.Dir); s.unguarded == nil {
		config, err := s.outside.guarded(s.Info)
		if err != nil {
			return nil, fmt.Errorf("guard demo: %w", err)
		}
		g, err := gateway.New(ctx, config, o)
		if !errors.Is(err, bpf.ErrUnsupported) {
			s.Info.guard, s.Info.guardNote = s.outside.at(s.Info), "towards a network namespace; bin/yumen guard status --socket "+s.Info.Gateway.Socket
			return g, err
		}
		s.unguarded = errors.Join(err, s.outside.close())
	}
	s.outside, s.Info.guard = nil, "off 未开启: "+s.unguarded.Error()
	return gateway.New(ctx, s.Info.Gateway.Config, o)
}

func (s *Site) agent(ctx context.Context) error {
	c, err := agent.Load(s.Info.Agent.Config)
	if err != nil {
		return err
	}
	c.Logger = s.log.Named("agent")
	a, err := agent.New(c)
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// connector keeps the portal online by Table 1.
func (s *Site) connector(ctx context.Context) error {
	dir := filepath.Join(s.Info.Dir, "connector")
	pass, err := keystore.ReadPassphrase(filepath.Join(dir, "passphrase"))
	if err != nil {
		return err
	}
	app := s.Info.App(Portal)
	keys, err := keystore.Open(app.Keys, pass)
	if err != nil {
		return err
	}
	c, err := link.NewClient(link.ClientConfig{
		URL: fmt.Sprintf("https://gateway.localhost:%d", s.Info.Gateway.Port), Address: s.Info.Gateway.Address,
		Keys: keys, AppName: app.Name, Service: hostPort(app.Backend), Logger: s.log.Named("connector"),
	})
	if err != nil {
		return err
	}
	return c.Run(ctx)
}

// signIn signs the agent's user in, as `yumen agent login` does, and waits for
// the tunnel.
func (s *Site) signIn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return s.Info.SignInAgent(ctx)
}

// SignInAgent signs the demo's user in on the agent and waits until the tunnel
// stands and the portal is online.
func (i *Info) SignInAgent(ctx context.Context) error {
	c := agent.NewClient(i.Agent.Socket)
	defer c.Close()
	user := i.User("alice")
	var last error
	signedIn := false
	for {
		if !signedIn {
			a, err := c.Login(ctx, agent.LoginRequest{UserID: user.ID, Factors: []wire.Factor{{AuthenticationType: 1, AuthenticationContent: user.Password}}})
			switch {
			case err != nil:
				last = err
			case !a.OK:
				last = fmt.Errorf("sign in on the agent: %s", a.Words)
			default:
				signedIn = true
			}
		}
		if signedIn {
			st, err := c.Status(ctx)
			var gw gateway.Status
			if err == nil {
				err = adminsock.NewClient(i.Gateway.Socket).Do(ctx, http.MethodGet, "/status", nil, &gw)
			}
			online := false
			for _, a := range gw.Apps {
				online = online || a.ID == Portal && a.State == "online"
			}
			switch {
			case err != nil:
				last = err
			case st.Gateway == "" || st.Resources == 0:
				last = fmt.Errorf("the agent's tunnel does not stand yet: %s", st.Fault)
			case !online:
				last = errors.New("the portal's connector has not reported yet")
			default:
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("start demo: not ready in time: %w", last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// serveSocket lets scripts unplug the control center.
func (s *Site) serveSocket(ctx context.Context) error {
	ln, err := adminsock.Listen(s.Info.Socket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	verb := func(pattern string, f func() error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if err := f(); err != nil {
				adminsock.Refuse(w, http.StatusInternalServerError, err)
				return
			}
			adminsock.Reply(w, struct{}{})
		})
	}
	verb("POST /control/stop", func() error { return s.control.stop() })
	verb("POST /control/start", func() error {
		if s.control.cancel != nil {
			return errors.New("the control center runs already")
		}
		return s.control.start()
	})
	mux.HandleFunc("GET /guard", func(w http.ResponseWriter, r *http.Request) {
		if s.unguarded != nil {
			adminsock.Reply(w, GuardReport{Off: s.unguarded.Error()})
			return
		}
		report, err := s.outside.look(r.Context(), s.Info)
		if err != nil {
			adminsock.Refuse(w, http.StatusInternalServerError, err)
			return
		}
		adminsock.Reply(w, report)
	})
	return adminsock.Serve(ctx, ln, mux)
}
