package ctlclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/wire"
)

// AgentConfig is what an [Agent] needs. The zero value of an optional field
// selects its default.
type AgentConfig struct {
	URL       string          // https base of the control center; required
	ControlID string          // default: the one of control-sign.crt
	AgentID   string          // required
	DeviceID  string          // required
	Keys      *keystore.Store // tls, tlcp, sign, enc and the trust files; required
	Crypto    profile.Profile // by which protocol; default mixed, by TLCP

	DeviceType, SystemType string               // Table 16; default from the build
	Longitude, Latitude    wire.Coordinate      // Table 16
	Posture                func() *wire.Posture // of the device, for each report; default: not known
	Address                func() (string, int) // the agent's ip and port of Tables 16 and 21; default: the address towards the control center

	Interval       time.Duration // of Tables 16, 19 and 21; default and most 55 s (§9.2)
	RequestTimeout time.Duration // one message and its answer; default 10 s

	OnToken     func(Token)      // for each Table 18, whose token may be the last one again; must not block
	OnResources func(*Resources) // for each Table 19 that differs from the last; must not block
	Delivered   func(Delivery)   // for each message that was answered or failed; must not block
	OnSignedOut func(error)      // the control center ended the sign-in; must not block

	Alerts       alert.Sink   // takes the link's own alerts, and should lead back to Raise; default: Raise itself
	StateDir     string       // for what must survive the process; default: nothing does
	Outbox       Outbox       // default: a [Durable] in StateDir/outbox, or a [Memory] without StateDir; Run opens and closes the former
	OutboxConfig OutboxConfig // of that default
	Usage        func() Usage // default: this host's
	Profile      wire.Profile
	Logger       *zap.Logger      // default: none
	Now          func() time.Time // default time.Now
	Dial         func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Token is what Table 18 gives: the handle for the gateways.
type Token struct {
	UserID    string
	AuthToken string
	Expires   time.Time
}

// String hides the token.
func (t Token) String() string { return "token of " + t.UserID }

// Resources is Table 19 with its extensions.
type Resources struct {
	List     wire.ResourceList
	Facts    []wire.ResourceFacts
	Gateways []wire.GatewayRef
}

// Agent is an agent's link to its control center. Make one with [NewAgent].
// It is an [alert.Sink]. The single messages (Authenticate, FetchResources,
// SendStatus, SendAlert) may be used with or without Run.
type Agent struct {
	cfg     AgentConfig
	call    *caller
	reports *reporter
	log     *zap.Logger
	changed chan struct{} // somebody signed in or out; capacity 1
	due     chan struct{} // a report is wanted now; capacity 1

	mu     sync.Mutex
	user   string      // guarded by mu; who is signed in
	method int         // guarded by mu; of Table 16
	last   string      // guarded by mu; who was signed in last
	digest string      // guarded by mu; of the last Table 19
	tag    string      // guarded by mu; of the last Table 19 of an X.report; "" when there is none
	whole  bool        // guarded by mu; the present session reports by X.report
	status AgentStatus // guarded by mu
}

// agentCaps bound what an agent keeps on a person's disk.
var agentCaps = [NumClasses]int64{ClassAlert: 8 << 20, ClassIdentity: 8 << 20, ClassAudit: 8 << 20, ClassStatus: 8 << 20}

func (c *AgentConfig) setDefaults() error {
	if c.DeviceType == "" {
		c.DeviceType = "computer"
	}
	if c.SystemType == "" {
		c.SystemType = runtime.GOOS + "-" + runtime.GOARCH
	}
	if c.Interval <= 0 || c.Interval > 55*time.Second {
		c.Interval = 55 * time.Second
	}
	if c.Address == nil {
		ip := outboundIP(c.URL)
		c.Address = func() (string, int) { return ip, 443 }
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Outbox == nil && c.StateDir != "" {
		d := DurableConfig{Dir: filepath.Join(c.StateDir, "outbox"), Key: OutboxKey(c.Keys), Caps: agentCaps, Reserve: 1 << 20, Logger: c.Logger, Now: c.Now}
		c.OutboxConfig.Apply(&d)
		c.Outbox = NewDurable(d)
	} else if c.Outbox == nil {
		c.Outbox = NewMemory(MemoryConfig{Now: c.Now})
	}
	if c.Usage == nil {
		c.Usage = NewProbe(".").Usage
	}
	if c.OnToken == nil {
		c.OnToken = func(Token) {}
	}
	if c.OnResources == nil {
		c.OnResources = func(*Resources) {}
	}
	if c.OnSignedOut == nil {
		c.OnSignedOut = func(error) {}
	}
	if c.Keys == nil || c.AgentID == "" || c.DeviceID == "" {
		return errors.New("make control link: keys, agent id and device id are required (run yumen enroll first)")
	}
	return nil
}

// NewAgent checks cfg and reads the keys. Nothing runs until [Agent.Run].
func NewAgent(cfg AgentConfig) (*Agent, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	call, err := newCaller(callerConfig{
		url: cfg.URL, base: "/ztna/v1/agent", id: cfg.AgentID, controlID: cfg.ControlID, keys: cfg.Keys, crypto: cfg.Crypto,
		requireSealed: true, timeout: cfg.RequestTimeout, dial: cfg.Dial, now: cfg.Now,
	})
	if err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, call: call, log: cfg.Logger, changed: make(chan struct{}, 1), due: make(chan struct{}, 1)}
	a.reports = newReporter(cfg.Outbox, call, cfg.Logger, cfg.Now, map[string]string{"T16": "/authentication", "T21": "/status", "T22": "/alerts"})
	a.reports.alert = a.alertMessage
	if a.reports.own = cfg.Alerts; cfg.Alerts == nil {
		a.reports.own = a.reports
	}
	a.reports.replied = a.replayed
	a.reports.delivery.tell = cfg.Delivered
	return a, nil
}

// replayed takes the answer to a report of the outbox: Table 18 may bring a new
// token even then.
func (a *Agent) replayed(p *Report, m *envelope.Message) {
	if m.Header.MsgType != "T18" {
		return
	}
	var sent struct {
		UserID string `json:"userId"`
	}
	r, err := wire.Decode[wire.AuthenticationReply](m.Body, a.cfg.Profile)
	if err != nil || json.Unmarshal(p.Body, &sent) != nil {
		return
	}
	a.mu.Lock()
	same := a.user == sent.UserID
	a.mu.Unlock()
	if t, err := tokenOf(r, m, sent.UserID); err == nil && same && t.UserID == sent.UserID {
		a.took(t)
	}
}

// Login signs userID in by Table 16; it may be the name that the control center
// knows, and the Token then has the userId. The factors are sent once and never
// kept. A refusal is a [*RefusedError].
func (a *Agent) Login(ctx context.Context, userID string, method int, factors []wire.Factor) (Token, error) {
	t, err := a.prove(ctx, userID, method, factors)
	if err != nil {
		return Token{}, err
	}
	a.mu.Lock()
	a.user, a.last, a.method, a.digest, a.tag = t.UserID, t.UserID, method, "", ""
	a.status.UserID = t.UserID
	a.mu.Unlock()
	a.took(t)
	a.wake()
	return t, nil
}

// Logout forgets the user: reports stop until the next Login.
func (a *Agent) Logout() {
	a.mu.Lock()
	a.user, a.digest, a.tag = "", "", ""
	a.status.UserID, a.status.TokenExpires = "", time.Time{}
	a.mu.Unlock()
	a.wake()
}

func (a *Agent) wake() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// took passes a token on and notes when it ends.
func (a *Agent) took(t Token) {
	a.mu.Lock()
	a.status.LastIdentity, a.status.TokenExpires = a.cfg.Now(), t.Expires
	a.mu.Unlock()
	a.cfg.OnToken(t)
}

// authentication makes Table 16.
func (a *Agent) authentication(userID string, method int, factors []wire.Factor) *wire.Authentication {
	ip, port := a.cfg.Address()
	return &wire.Authentication{
		AgentID: a.cfg.AgentID, DeviceID: a.cfg.DeviceID, UserID: userID, UserAuthenticationMethod: method, UserAuthenticationList: factors,
		DeviceType: a.cfg.DeviceType, SystemType: a.cfg.SystemType, Longitude: a.cfg.Longitude, Latitude: a.cfg.Latitude,
		IP: ip, Port: port, Timestamp: wire.FormatTime(a.cfg.Now()),
	}
}

// prove sends Table 16 and reads the token of Table 18.
func (a *Agent) prove(ctx context.Context, userID string, method int, factors []wire.Factor) (Token, error) {
	r, m, err := a.authenticate(ctx, a.authentication(userID, method, factors))
	if err != nil {
		return Token{}, err
	}
	return tokenOf(r, m, userID)
}

// tokenOf reads the token of a successful Table 18, which m carried. A success
// without a token counts as a failure (M96); Decode has refused it already. The
// user is the one of ext.userId; without it, the one who was asked for.
func tokenOf(r *wire.AuthenticationReply, m *envelope.Message, userID string) (Token, error) {
	end, err := wire.ParseTime(r.ExpirationDate)
	if err != nil {
		return Token{}, fmt.Errorf("%w: table 18: expirationDate: %w", ErrDown, err)
	}
	if raw, ok := m.Header.Ext[wire.ExtUserID]; ok {
		if err := json.Unmarshal(raw, &userID); err != nil || userID == "" || len(userID) > wire.IDLength {
			return Token{}, fmt.Errorf("%w: table 18: userId: not 1 to %d characters", ErrDown, wire.IDLength)
		}
	}
	return Token{UserID: userID, AuthToken: r.AuthToken, Expires: end}, nil
}

// authenticate sends Table 16; a refusal is a [*RefusedError].
func (a *Agent) authenticate(ctx context.Context, m *wire.Authentication) (*wire.AuthenticationReply, *envelope.Message, error) {
	body, err := wire.Encode(m)
	if err != nil {
		return nil, nil, fmt.Errorf("make table 16: %w", err)
	}
	reply, err := a.call.post(ctx, "/authentication", envelope.Header{MsgType: "T16"}, body, true)
	if err != nil {
		return nil, nil, err
	}
	if reply.Header.MsgType != "T18" {
		return nil, nil, fmt.Errorf("%w: %s instead of table 18", ErrDown, reply.Header.MsgType)
	}
	r, err := wire.Decode[wire.AuthenticationReply](reply.Body, a.cfg.Profile)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrDown, err)
	}
	return r, reply, nil
}

// Authenticate sends Table 16 as it is and returns Table 18 as it came, a
// refusal too.
func (a *Agent) Authenticate(ctx context.Context, m *wire.Authentication) (*wire.AuthenticationReply, error) {
	r, _, err := a.authenticate(ctx, m)
	var no *RefusedError
	if errors.As(err, &no) {
		return &wire.AuthenticationReply{Code: wire.Failure, Result: no.Result}, nil
	}
	return r, err
}

// FetchResources fetches Table 19. Who is signed in is in the query.
func (a *Agent) FetchResources(ctx context.Context) (*Resources, error) {
	a.mu.Lock()
	user := a.user
	a.mu.Unlock()
	path := "/resources"
	if user != "" {
		path += "?userId=" + url.QueryEscape(user)
	}
	m, err := a.call.get(ctx, path, "T19")
	if err != nil {
		return nil, err
	}
	r := &Resources{}
	for name, into := range map[string]any{wire.ExtResources: &r.Facts, wire.ExtGateways: &r.Gateways} {
		if raw, ok := m.Header.Ext[name]; ok {
			if err := json.Unmarshal(raw, into); err != nil {
				return nil, fmt.Errorf("%w: table 19: %s: %w", ErrDown, name, err)
			}
		}
	}
	if err := a.readList(r, m.Body, user); err != nil {
		return nil, err
	}
	return r, nil
}

// readList reads Table 19, which user asked for, into r beside its extensions.
func (a *Agent) readList(r *Resources, raw []byte, user string) error {
	list, bad, err := readResources(raw, a.cfg.Profile)
	if err != nil {
		return fmt.Errorf("%w: table 19: %w", ErrDown, err)
	}
	if len(bad) > 0 {
		a.log.Warn("table 19 has bad rows", zap.Int("rows", len(bad)), zap.Error(&bad[0]))
	}
	if list.AgentID != a.cfg.AgentID || list.DeviceID != a.cfg.DeviceID || user != "" && list.UserID != user {
		return fmt.Errorf("%w: table 19 is for another agent", ErrDown)
	}
	r.List = *list
	r.dropBad(bad)
	return nil
}

// readResources reads Table 19. A bad row is left out and named.
func readResources(raw []byte, p wire.Profile) (*wire.ResourceList, []wire.RowError, error) {
	var t struct {
		AgentID      string         `json:"agentId"`
		UserID       string         `json:"userId"`
		DeviceID     string         `json:"deviceId"`
		KeyType      string         `json:"keyType"`
		Timestamp    string         `json:"timestamp"`
		ResourceList jsontext.Value `json:"resourceList"`
		Remark       string         `json:"remark"`
	}
	if err := json.Unmarshal(raw, &t); err != nil {
		return nil, nil, err
	}
	l := &wire.ResourceList{AgentID: t.AgentID, UserID: t.UserID, DeviceID: t.DeviceID, KeyType: t.KeyType, Timestamp: t.Timestamp, Remark: t.Remark}
	if err := l.Validate(p); err != nil {
		return nil, nil, err
	}
	if t.ResourceList == nil {
		return l, nil, nil
	}
	rows, bad, err := wire.DecodeRows[wire.Resource](t.ResourceList, p)
	l.ResourceList = rows
	return l, bad, err
}

// dropBad renumbers the facts when rows were left out: a bad row grants
// nothing, and its facts must not become another's.
func (r *Resources) dropBad(bad []wire.RowError) {
	at := make(map[int]int, len(r.List.ResourceList))
	for i := range r.List.ResourceList {
		at[wire.OriginalRow(bad, i)] = i
	}
	var kept []wire.ResourceFacts
	for _, f := range r.Facts {
		if i, ok := at[f.I]; ok {
			f.I = i
			kept = append(kept, f)
		}
	}
	r.Facts = kept
}

// SendStatus sends Table 21 at once, past the outbox.
func (a *Agent) SendStatus(ctx context.Context, m *wire.AgentStatus) error {
	return a.send(ctx, "/status", m)
}

// SendAlert sends Table 22 at once, past the outbox.
func (a *Agent) SendAlert(ctx context.Context, m *wire.AgentAlert) error {
	return a.send(ctx, "/alerts", m)
}

func (a *Agent) send(ctx context.Context, path string, m wire.Message) error {
	body, err := wire.Encode(m)
	if err != nil {
		return fmt.Errorf("make table %d: %w", m.Table(), err)
	}
	_, err = a.call.post(ctx, path, envelope.Header{MsgType: fmt.Sprintf("T%d", m.Table())}, body, true)
	return err
}

// Raise sends al to the control center as Table 22. It never blocks.
func (a *Agent) Raise(al alert.Alert) { a.reports.Raise(al) }

// nobody stands in Table 22 for the user while none has signed in yet.
const nobody = "00000000000"

func (a *Agent) alertMessage(al alert.Alert) (string, wire.Message) {
	a.mu.Lock()
	user := cmp.Or(al.UserID, a.user, a.last, nobody)
	a.mu.Unlock()
	return "T22", &wire.AgentAlert{
		AgentID: a.cfg.AgentID, UserID: user, DeviceID: a.cfg.DeviceID, Timestamp: wire.FormatTime(al.Time),
		ExceptionAlertType: string(al.Code), ExceptionAlertLevel: int(alertLevel(al)), ExceptionAlertContent: alertContent(al, a.cfg.DeviceID),
	}
}

// Status returns the state of the link.
func (a *Agent) Status() AgentStatus {
	a.mu.Lock()
	s := a.status
	a.mu.Unlock()
	s.Outbox = a.reports.stats()
	s.AlertsRefused, s.Rejected = a.reports.refused.Load(), a.reports.rejected.Load()
	s.LastStatus = a.reports.lastSent("T21")
	s.Protocol, s.Suite = a.call.channel()
	s.Hedges = a.call.hedges.stats()
	return s
}

// AgentStatus is the state of an agent's link.
type AgentStatus struct {
	Connected     bool                   `json:"connected"`
	Protocol      string                 `json:"protocol,omitempty"` // of the newest connection: tlcp, tls1.3 ...
	Suite         string                 `json:"suite,omitempty"`
	UserID        string                 `json:"user_id,omitempty"`
	TokenExpires  time.Time              `json:"token_expires,omitzero"`
	LastIdentity  time.Time              `json:"last_identity,omitzero"`
	LastStatus    time.Time              `json:"last_status,omitzero"`
	LastResources time.Time              `json:"last_resources,omitzero"`
	Outbox        [NumClasses]ClassStats `json:"outbox"`
	AlertsRefused uint64                 `json:"alerts_refused"`
	Rejected      uint64                 `json:"rejected"`
	Failures      uint64                 `json:"failures"`
	Hedges        Hedges                 `json:"hedges"` // messages that were sent again because no answer came
	LastError     string                 `json:"last_error,omitempty"`
	NextTry       time.Time              `json:"next_try,omitzero"`
}
