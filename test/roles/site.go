// Package roles runs a control center with gateways' and agents' links in one
// process, over any network: sockets, a network in memory, another namespace.
// It is for tests and benchmarks that must see both ends on one clock.
//
//	site.go    the control center, its operator, enrolment
//	preload.go a list of many grants
//	links.go   links of gateways and agents
//	record.go  what the control center has seen
//
// Start reading at [New].
package roles

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
)

// iterations of the key files: their passphrases are random, which needs no
// stretching.
const iterations = 1000

// DialFunc opens connections, as [net.Dialer.DialContext].
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Config is what a [Site] needs. The zero value of an optional field selects its
// default.
type Config struct {
	Dir     string                                              // required; empty folder
	Address string                                              // host:port of the control center; required
	Listen  func(network, address string) (net.Listener, error) // default: sockets
	Dial    DialFunc                                            // of the links; default: sockets
	Control func(*control.Config)                               // changes the control center's configuration
	Logger  *zap.Logger                                         // of the links; default: none
}

// Site is a control center that can be started and stopped, and the parties
// that it has enrolled.
type Site struct {
	cfg     Config
	control control.Config
	Server  *control.Server // the one that runs
	Record  *Record
	admin   *http.Client
	stop    context.CancelFunc
	done    chan error
}

// New lays out a control center. Start runs it.
func New(c Config) (*Site, error) {
	file, err := control.Init(control.InitConfig{
		Dir: filepath.Join(c.Dir, "control"), URL: "https://" + c.Address, Listen: c.Address, Hosts: []string{"localhost"},
		CA: lab.Config{Name: "Yumen test", Iterations: iterations},
	})
	if err != nil {
		return nil, err
	}
	cc, err := control.LoadConfig(file)
	if err != nil {
		return nil, err
	}
	s := &Site{cfg: c, control: cc.Defaults(), Record: newRecord()}
	s.control.IDP, s.control.Network = nil, c.Listen
	s.control.Audit, s.control.Alerts = s.Record, alert.Func(s.Record.raise)
	if c.Control != nil {
		c.Control(&s.control)
	}
	dial := s.cfg.Dial
	if c.Listen == nil {
		dial = nil
	}
	s.admin = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		if dial != nil {
			return dial(ctx, "unix", s.control.AdminSocket)
		}
		return new(net.Dialer).DialContext(ctx, "unix", s.control.AdminSocket)
	}}}
	return s, nil
}

// Alerts returns the file of the alerts that arrived.
func (s *Site) Alerts() string { return filepath.Join(s.control.DataDir, "alerts.jsonl") }

// Start runs the control center and returns when it listens.
func (s *Site) Start() error {
	srv, err := control.New(s.control)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	select {
	case <-srv.Ready():
		s.Server, s.stop, s.done = srv, cancel, done
		return nil
	case err := <-done:
		cancel()
		return err
	}
}

// Stop ends the control center and waits for it.
func (s *Site) Stop() error {
	if s.stop == nil {
		return nil
	}
	s.stop()
	s.stop = nil
	return <-s.done
}

// Do sends a verb to the control center's operator's socket.
func (s *Site) Do(ctx context.Context, method, path string, in, out any) error {
	raw, err := json.Marshal(in)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://local"+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	resp, err := s.admin.Do(r)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return errors.Join(err, fmt.Errorf("%s %s: HTTP status %d: %s", method, path, resp.StatusCode, body))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(body, out)
}

// Chaos begins a plan, or ends the one that runs when p has no steps.
func (s *Site) Chaos(ctx context.Context, p control.ChaosPlan) (st control.ChaosState, err error) {
	if len(p.Steps) == 0 {
		return st, s.Do(ctx, "DELETE", "/v1/chaos", nil, &st)
	}
	return st, s.Do(ctx, "PUT", "/v1/chaos", &p, &st)
}

// User adds a user with a password, who may use app on any device.
func (s *Site) User(ctx context.Context, name, password string) (id string, err error) {
	var done control.Done
	if err := s.Do(ctx, "POST", "/v1/users", control.NewUser{Name: name, Password: password}, &done); err != nil {
		return "", err
	}
	return done.ID, nil
}

// Party is an enrolled gateway or agent.
type Party struct {
	ID, DeviceID, URL string
	Dir               string
	Passphrase        []byte // of the keys
	Keys              *keystore.Store
}

// Enrol adds a device of kind (gateway or agent) and enrols it.
func (s *Site) Enrol(ctx context.Context, kind, name string) (*Party, error) {
	var code control.NewCode
	if err := s.Do(ctx, "POST", "/v1/devices", control.NewDevice{Kind: kind, Name: name}, &code); err != nil {
		return nil, err
	}
	dir := filepath.Join(s.cfg.Dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	pass := []byte(rand.Text())
	e, err := ctlclient.Enrol(ctx, ctlclient.EnrolConfig{
		Code: code.Code, Dir: filepath.Join(dir, "keys"), Passphrase: pass, DeviceName: name, Iterations: iterations, Dial: s.cfg.Dial, Now: s.control.Now,
	})
	if err != nil {
		return nil, err
	}
	keys, err := keystore.New(keystore.Config{Dir: filepath.Join(dir, "keys"), Passphrase: pass, Iterations: iterations})
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(e.URL)
	if err != nil {
		return nil, err
	}
	return &Party{ID: e.ID, DeviceID: e.DeviceID, URL: u.String(), Dir: dir, Passphrase: pass, Keys: keys}, nil
}

// settle is how long a party may take to end.
const settle = 30 * time.Second
