package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/yumen-zt/yumen/agent/localuser"
	"github.com/yumen-zt/yumen/agent/posture"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/wire"
)

// Agent is one running agent, for one enrolled device. Make it with [New].
type Agent struct {
	cfg     Config
	id      Identity
	log     *zap.Logger
	link    Link
	dialer  Dialer
	permits *permits
	state   *state
	kept    ctlclient.Outbox // identity reports of the time without a tunnel
	tamper  error            // what openState found altered; Run reports it and ends
	alerts  *alert.Damper
	notices notices
	faces   []*face
	slots   chan struct{} // one for each local connection in service
	refetch chan struct{}
	stop    context.CancelFunc // ends Run in order; set before the verbs are served
	uid     uint32
	peer    func(net.Conn) (uint32, error)
	udpPeer func(local, remote netip.AddrPort) (uint32, error)

	loginMu sync.Mutex // one sign-in at a time

	mu       sync.Mutex
	changed  chan struct{}     // guarded by mu; closed at each change of the next four
	session  session           // guarded by mu
	routes   *routes           // guarded by mu; the value is immutable
	proof    time.Duration     // guarded by mu; how long the last Table 14 took to be answered
	gateways []wire.GatewayRef // guarded by mu; not written to
	tunnel   *live             // guarded by mu
	flows    map[uint64]*flow  // guarded by mu; at most MaxFlows and their datagram ways
	nextFlow uint64            // guarded by mu
	hinted   time.Duration     // guarded by mu; Elapsed
	posture  posture.Report    // guarded by mu
	fetched  time.Time         // guarded by mu; when the resource list came
	renewed  time.Time         // guarded by mu; last Table 14 or hello that was accepted

	lastNo                                                 *carrier.RefusedError // guarded by mu; how the gateway refused the last tunnel
	bound                                                  []FaceStatus          // guarded by mu; not written to
	lastFault                                              string                // guarded by mu; why there is no tunnel
	lock                                                   *Lock                 // guarded by mu; the value is immutable
	opened, denied, strangers, overLimit, droppedDatagrams uint64                // guarded by mu
}

// New checks cfg, opens the keys and verifies the state. Nothing runs and
// nothing listens until Run. A state that was altered is no error here: Run
// reports it to the control center first, and refuses then.
func New(cfg Config) (*Agent, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("check agent configuration: %w", err)
	}
	a := &Agent{
		cfg: cfg, log: cfg.Logger, peer: localuser.Peer, udpPeer: localuser.UDPPeer,
		slots: make(chan struct{}, cfg.MaxFlows), refetch: make(chan struct{}, 1),
		changed: make(chan struct{}), flows: map[uint64]*flow{},
	}
	a.posture = cfg.Probe()
	uid, err := localuser.Self()
	if err != nil && !(errors.Is(err, localuser.ErrUnsupported) && cfg.TrustLocalUsers) {
		return nil, fmt.Errorf("make agent: %w", err)
	}
	a.uid = uid
	if !localuser.Supported && !cfg.TrustLocalUsers {
		return nil, fmt.Errorf("make agent: %w", localuser.ErrUnsupported)
	}
	if err := a.connectParts(); err != nil {
		return nil, fmt.Errorf("make agent: %w", err)
	}
	a.alerts = alert.NewDamper(alert.Func(a.sendAlert), alertDamping, cfg.Now)
	a.faces = a.newFaces()
	return a, nil
}

// Run serves the faces and keeps the session and the tunnel until ctx ends. It
// returns after every goroutine of a has ended. It is called once.
func (a *Agent) Run(ctx context.Context) error {
	if a.tamper != nil {
		return a.altered(ctx, a.tamper)
	}
	verbs, err := a.listenVerbs()
	if err != nil {
		return fmt.Errorf("run agent: %w", err)
	}
	if err := a.listen(); err != nil {
		verbs.Close()
		return fmt.Errorf("run agent: %w", err)
	}
	page, err := a.listenPage()
	if err != nil {
		a.closeFaces()
		verbs.Close()
		return fmt.Errorf("run agent: %w", err)
	}
	a.log.Info("agent runs", zap.String("agent_id", a.id.AgentID), zap.String("device_id", a.id.DeviceID), zap.Int("faces", len(a.faces)))
	ctx, a.stop = context.WithCancel(ctx)
	defer a.stop()
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range a.faces {
		g.Go(func() error { return f.run(ctx, a) })
	}
	g.Go(func() error { return a.serveHTTP(ctx, verbs, a.verbs()) })
	if page != nil {
		g.Go(func() error { return a.serveHTTP(ctx, page, a.page()) })
	}
	g.Go(func() error {
		if err := a.link.Run(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("keep link to the control center: %w", err)
		}
		return nil
	})
	g.Go(func() error { return a.keepTunnel(ctx) })
	g.Go(func() error { return a.keepSession(ctx) })
	g.Go(func() error { return a.keepIdentity(ctx) })
	g.Go(func() error { return a.watch(ctx) })
	err = g.Wait()
	a.closeKept()
	a.closeFaces()
	if rm := os.Remove(a.cfg.Socket); rm != nil && !errors.Is(rm, os.ErrNotExist) {
		err = errors.Join(err, rm)
	}
	if err != nil {
		return fmt.Errorf("run agent: %w", err)
	}
	return nil
}

// altered tells the control center that the state was altered (§9.4) and
// returns why the agent does not work.
func (a *Agent) altered(ctx context.Context, why error) error {
	al := alert.Alert{Code: alert.StateAltered, Level: alert.Severe, Time: a.cfg.Now(), DeviceID: a.id.DeviceID, Detail: why.Error()}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := a.link.SendAlert(ctx, a.alertTable(al)); err != nil {
		a.log.Error("alert not delivered", zap.String("type", string(al.Code)), zap.Error(err))
	}
	return fmt.Errorf("run agent: %w", why)
}

// Status is a picture of an agent at one moment. It carries no secret.
type Status struct {
	AgentID  string     `json:"agentId"`
	DeviceID string     `json:"deviceId"`
	UserID   string     `json:"userId,omitempty"`
	LastUser string     `json:"lastUser,omitempty"` // who signed in last, for the next sign-in
	State    State      `json:"state"`
	Lock     *Lock      `json:"lock,omitempty"`    // the user or the device is locked
	Expires  *time.Time `json:"expires,omitempty"` // of the token

	Gateway     string     `json:"gateway,omitempty"`
	GatewayAddr string     `json:"gatewayAddress,omitempty"`
	Carrier     string     `json:"carrier,omitempty"`       // of the tunnel: tlcp, tls1.3, quic; quic+tlcp: TLCP inside
	Suite       string     `json:"suite,omitempty"`         // of the carrier
	Connections int        `json:"connections,omitempty"`   // of the tunnel, where it may have several
	CarrierWhy  string     `json:"carrierReason,omitempty"` // the setting that chose it, and why it is no better one
	Since       *time.Time `json:"since,omitempty"`         // of the tunnel
	Renewed     *time.Time `json:"renewed,omitempty"`       // last accepted Table 14
	RenewalMs   float64    `json:"renewalMs,omitempty"`     // from its making to its answer, or to the hello that took its place
	Kept        int        `json:"kept"`                    // identity reports of a time without a tunnel, to be sent
	Permit      string     `json:"permit,omitempty"`        // how the first packet got in: open, knock, syn, initial or home
	Fault       string     `json:"fault,omitempty"`         // why there is no tunnel

	ControlConnected bool       `json:"controlConnected"`
	ControlProtocol  string     `json:"controlProtocol,omitempty"` // of the newest connection to it
	ControlSuite     string     `json:"controlSuite,omitempty"`
	ControlFault     string     `json:"controlFault,omitempty"`
	Resources        int        `json:"resources"`
	Fetched          *time.Time `json:"fetched,omitempty"` // when the resource list came

	Flows            int    `json:"flows"`
	Opened           uint64 `json:"opened"`
	Refused          uint64 `json:"refused"`
	Strangers        uint64 `json:"strangers"`  // connections of other local users
	OverLimit        uint64 `json:"over_limit"` // connections beyond max_flows
	DroppedDatagrams uint64 `json:"dropped_datagrams"`

	Posture posture.Report `json:"posture"` // of this device
	Faces   []FaceStatus   `json:"faces"`
	Notices []Notice       `json:"notices"` // the newest first
}

// FaceStatus names one local address.
type FaceStatus struct {
	Kind string `json:"kind"`
	Addr string `json:"address"`
}

// State is the state of an agent in one word.
type State string

// The states.
const (
	SignedOut  State = "signed_out" // nobody is signed in
	Connecting State = "connecting" // signed in, no tunnel
	Ready      State = "ready"
	Degraded   State = "degraded" // a tunnel, but no control center
	Locked     State = "locked"   // the user or the device, whoever is signed in
)

// Words returns s for a person.
func (s State) Words() Words {
	switch s {
	case Connecting:
		return Words{EN: "connecting", ZH: "正在连接"}
	case Ready:
		return Words{EN: "ready", ZH: "已就绪"}
	case Locked:
		return Words{EN: "locked by the administrator; sign in again when the lock is gone", ZH: "已被管理员锁定，解除锁定后请重新登录"}
	case Degraded:
		return Words{EN: "ready, but the control center cannot be reached", ZH: "已就绪，但无法连接控制中心"}
	}
	return Words{EN: "signed out", ZH: "未登录"}
}

// Status returns the present state. It may be called from any goroutine.
func (a *Agent) Status() (s Status) {
	ctl := a.link.Status()
	s = Status{
		AgentID: a.id.AgentID, DeviceID: a.id.DeviceID, State: SignedOut, LastUser: a.lastUser(), ControlConnected: ctl.Connected,
		ControlFault: printable(ctl.LastError), Notices: a.notices.all(), ControlProtocol: ctl.Protocol, ControlSuite: ctl.Suite,
	}
	s.Kept = a.kept.Stats()[ctlclient.ClassIdentity].Pending
	a.mu.Lock()
	defer a.mu.Unlock()
	s.RenewalMs = float64(a.proof.Microseconds()) / 1000
	s.Faces, s.Posture = a.bound, a.posture
	s.Fault, s.Flows, s.Opened, s.Refused = a.lastFault, len(a.flows), a.opened, a.denied
	s.Strangers, s.OverLimit, s.DroppedDatagrams = a.strangers, a.overLimit, a.droppedDatagrams
	defer func() {
		if s.Lock = a.lock; s.Lock != nil {
			s.State = Locked
		}
	}()
	if !a.session.in() {
		return s
	}
	s.UserID, s.Expires, s.State = a.session.userID, moment(a.session.expires), Connecting
	if a.routes != nil {
		s.Resources, s.Fetched = len(a.routes.list), moment(a.fetched)
	}
	if t := a.tunnel; t != nil {
		s.Gateway, s.GatewayAddr, s.Since, s.Renewed = t.gateway, t.addr, moment(t.since), moment(a.renewed)
		c := t.Carrier()
		s.Carrier, s.Suite, s.CarrierWhy = c.Protocol, c.Suite, a.cfg.carrierReason()
		if c, ok := t.Tunnel.(carried); ok {
			s.Permit = string(c.way)
			if b, several := c.ends.(*carrier.Bundle); several {
				_, s.Connections = b.Stats()
			}
			if c.lost != "" {
				s.CarrierWhy += "; " + c.lost
			}
		}
		s.State = Ready
		if !ctl.Connected {
			s.State = Degraded
		}
	}
	return s
}

func (a *Agent) lastUser() string {
	if a.state == nil {
		return a.cfg.User
	}
	if u := a.state.user(); u != "" {
		return u
	}
	return a.cfg.User
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
