package testbed

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/agent"
	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/gateway"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/wire"
)

// The keys of a test are under a random passphrase of 256 bits, which needs no
// stretching.
const iterations = 10_000

// Domain is above every host name of a site.
const Domain = "e2e.test"

// App is one application of a site.
type App struct {
	ID       string
	Name     string // host is NAME.e2e.test; agents reach it as NAME.app
	Upstream string // http, tcp or udp URL with a loopback address
	Extra    string // further lines of its entry in gateway.yaml, each indented by four spaces
}

// Host returns the name that browsers use.
func (a App) Host() string { return a.Name + "." + Domain }

func (a App) scheme() string { s, _, _ := strings.Cut(a.Upstream, "://"); return s }

// Address returns the host:port of the upstream.
func (a App) Address() string { _, addr, _ := strings.Cut(a.Upstream, "://"); return addr }

// SiteConfig chooses a site.
type SiteConfig struct {
	V6        bool            // the parties find each other on [::1]
	Profile   profile.Profile // of every role; browsers speak TLCP unless it is intl
	Apps      []App
	Gateway   string   // further lines of gateway.yaml
	Control   string   // further lines of control.yaml
	Addresses []string // further host:port of the gateway, for its certificate and agents
	Hosts     []string // further names of the control center's certificate
}

// Site is a control center and a gateway, each a process of its own.
type Site struct {
	SiteConfig
	Dir          string
	Port         int // of the gateway, on 127.0.0.1 and [::1]
	GatewayID    string
	Issuer       string
	CA           []byte // PEM of the TLS root
	CAFile       string
	TLCPRoots    *smx509.CertPool // of the gateway's TLCP pair; nil without TLCP
	TLCPRootFile string
	Admin        *control.AdminClient
	GatewayAdmin *adminsock.Client
	Metrics      string // host:port

	GatewayConfig, ControlConfig string // files
	GatewayAudit, ControlAudit   AuditFile

	Control, Gateway *Process // nil: not started, or stopped
	o                Owner
}

var idpListen = regexp.MustCompile(`(?m)^  listen: .*$`)

// NewSite lays a site out by the steps of a real one, and starts it.
func NewSite(o Owner, c SiteConfig) *Site {
	o.Helper()
	s := &Site{SiteConfig: c, Dir: folder(o), Port: Port(o), o: o}
	controlPort, idpPort := Port(o), Port(o)
	s.Metrics = Loopback(false, Port(o))
	s.Issuer = fmt.Sprintf("https://localhost:%d", idpPort)
	file, err := control.Init(control.InitConfig{
		Dir: filepath.Join(s.Dir, "control"), URL: "https://" + Loopback(c.V6, controlPort), Hosts: append([]string{"localhost", "127.0.0.1", "::1"}, c.Hosts...),
		Listen: Loopback(c.V6, controlPort), Issuer: s.Issuer, Client: s.URL("login", "/.yumen/callback"), Logout: s.URL("login", "/.yumen/leave?done=1"),
		CA: lab.Config{Name: "Yumen test", Iterations: iterations},
	})
	if err != nil {
		o.Fatalf("%v", err)
	}
	s.ControlConfig = file
	raw, err := os.ReadFile(file)
	if err != nil {
		o.Fatalf("%v", err)
	}
	// The provider on loopback alone, too.
	text := idpListen.ReplaceAllString(string(raw), fmt.Sprintf("  listen: [%q, %q]", Loopback(false, idpPort), Loopback(true, idpPort)))
	if err := os.WriteFile(file, []byte(text+c.profile()+c.Control), 0o600); err != nil {
		o.Fatalf("%v", err)
	}
	cc, err := control.LoadConfig(file)
	if err != nil {
		o.Fatalf("%v", err)
	}
	cc = cc.Defaults()
	s.Admin, s.ControlAudit = control.NewAdminClient(cc.Socket()), AuditFile{Path: cc.AuditFile}
	s.StartControl()

	for _, a := range c.Apps {
		app := map[string]any{"id": a.ID, "name": a.Name}
		if a.scheme() == "tcp" || a.scheme() == "udp" {
			app["addresses"], app["hosts"], app["protocol"] = []string{a.Address()}, []string{a.Name + ".app"}, a.scheme()
		}
		s.Do("POST", "/v1/apps", app, nil)
	}
	gw := s.enrol("gateway", "gateway", append([]string{Loopback(c.V6, s.Port)}, c.Addresses...)...)
	s.GatewayID = gw.ID
	s.certify(cc)
	s.GatewayConfig = filepath.Join(s.Dir, "gateway", "gateway.yaml")
	s.WriteGateway(c.Apps, c.Gateway)
	state := filepath.Join(s.Dir, "gateway", "state")
	s.GatewayAudit, s.GatewayAdmin = AuditFile{Gateway: s.GatewayConfig}, adminsock.NewClient(filepath.Join(state, "admin.sock"))
	s.StartGateway()
	Eventually(o, 30*time.Second, "gateway is ready and connected", func() bool {
		st, err := s.Status()
		return err == nil && st.Health == gateway.Ready && st.Control != nil && st.Control.Push
	})
	if _, err := s.GatewayAudit.Records(); err != nil { // opened by the configuration as it is now
		o.Fatalf("read audit: %v", err)
	}
	return s
}

// profile are the lines of every role's file that choose the protocol.
func (c SiteConfig) profile() string {
	return "crypto: {profile: " + c.Profile.String() + "}\n"
}

// URL returns the URL of path on the host with this first label.
func (s *Site) URL(name, path string) string {
	return fmt.Sprintf("https://%s.%s:%d%s", name, Domain, s.Port, path)
}

// Do sends a verb to the control center.
func (s *Site) Do(method, path string, in, out any) {
	s.o.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.Admin.Do(ctx, method, path, in, out); err != nil {
		s.o.Fatalf("%s %s: %v", method, path, err)
	}
}

// Status returns the gateway's state.
func (s *Site) Status() (*gateway.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var st gateway.Status
	if err := s.GatewayAdmin.Do(ctx, http.MethodGet, "/status", nil, &st); err != nil {
		return nil, err
	}
	return &st, nil
}

// Health returns the status and the word of /healthz.
func (s *Site) Health() (int, string, error) {
	c := http.Client{Timeout: 5 * time.Second}
	defer c.CloseIdleConnections()
	resp, err := c.Get("http://" + s.Metrics + "/healthz")
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	return resp.StatusCode, strings.TrimSpace(string(b)), err
}

// StartControl starts the control center and waits until it answers.
func (s *Site) StartControl() {
	s.o.Helper()
	s.Control = Run(s.o, "control center", "control", "run", "-c", s.ControlConfig)
	s.Control.until(30*time.Second, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return s.Admin.Do(ctx, "GET", "/v1/status", nil, nil)
	})
}

// StartGateway starts the gateway and waits until its operator's socket
// answers.
func (s *Site) StartGateway() {
	s.o.Helper()
	s.Gateway = Run(s.o, "gateway", "gateway", "run", "-c", s.GatewayConfig)
	s.Gateway.until(30*time.Second, func() error { _, err := s.Status(); return err })
}

// enrol enrols a party into DIR/folder.
func (s *Site) enrol(kind, name string, addresses ...string) *ctlclient.Enrolled {
	s.o.Helper()
	var code control.NewCode
	s.Do("POST", "/v1/devices", control.NewDevice{Kind: kind, Name: name, Addresses: addresses}, &code)
	dir := filepath.Join(s.Dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.o.Fatalf("%v", err)
	}
	pass := randomText(32)
	err := os.WriteFile(filepath.Join(dir, "passphrase"), []byte(pass+"\n"), 0o600)
	if err != nil {
		s.o.Fatalf("%v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	e, err := ctlclient.Enrol(ctx, ctlclient.EnrolConfig{
		Code: code.Code, Dir: filepath.Join(dir, "keys"), Passphrase: []byte(pass), DeviceName: name, Iterations: iterations,
	})
	if err != nil {
		s.o.Fatalf("enrol %s: %v", name, err)
	}
	return e
}

// certify makes the certificate that browsers see.
func (s *Site) certify(cc control.Config) {
	s.o.Helper()
	pass, err := keystore.ReadPassphrase(cc.PassphraseFile)
	if err != nil {
		s.o.Fatalf("%v", err)
	}
	ca, err := lab.LoadConfig(lab.Config{Iterations: iterations}, cc.CADir, pass)
	if err != nil {
		s.o.Fatalf("%v", err)
	}
	s.CA, s.CAFile = ca.RootPEM(keystore.TLSRoot), filepath.Join(s.Dir, "ca.crt")
	hosts := []string{"login." + Domain, "gateway." + Domain}
	for _, a := range s.Apps {
		hosts = append(hosts, a.Host())
	}
	dir := filepath.Join(s.Dir, "gateway")
	if err := errors.Join(os.WriteFile(s.CAFile, s.CA, 0o600), webCertificate(ca, dir, hosts)); err != nil {
		s.o.Fatalf("%v", err)
	}
	if !s.Profile.TLCP() {
		return
	}
	s.TLCPRoots, s.TLCPRootFile = smx509.NewCertPool(), filepath.Join(s.Dir, "tlcp-root.crt")
	root := ca.RootPEM(keystore.TLCPRoot)
	if !s.TLCPRoots.AppendCertsFromPEM(root) {
		s.o.Fatalf("no root of TLCP in the laboratory")
	}
	_, err = ca.WebPair(dir, lab.Options{Hosts: hosts})
	if err := errors.Join(err, os.WriteFile(s.TLCPRootFile, root, 0o600)); err != nil {
		s.o.Fatalf("%v", err)
	}
}

// pairLines are an entry of the gateway's certificates for what lab's WebPair
// wrote.
const pairLines = "  - {sign_cert_file: sign.crt, sign_key_file: sign.key, enc_cert_file: enc.crt, enc_key_file: enc.key}\n"

// webCertificate writes site.crt and site.key for hosts into dir.
func webCertificate(ca *lab.CA, dir string, hosts []string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	chain, err := ca.IssueWeb(csr, lab.Options{Hosts: hosts})
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "site.crt"), chain, 0o600),
		os.WriteFile(filepath.Join(dir, "site.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
}

// WriteGateway writes gateway.yaml.
func (s *Site) WriteGateway(apps []App, extra string) {
	s.o.Helper()
	u, err := control.LoadConfig(s.ControlConfig)
	if err != nil {
		s.o.Fatalf("%v", err)
	}
	pair := ""
	if s.Profile.TLCP() {
		pair = pairLines
	}
	var b strings.Builder
	fmt.Fprintf(&b, `name: e2e
listen: [%q, %q]
keys: {dir: keys, passphrase_file: passphrase}
certificates:
  - {cert_file: site.crt, key_file: site.key}
%scontrol: {url: %q}
login: {host: %q, issuer: %q, client_id: gateway, ca_file: ../ca.crt}
metrics: {listen: %q}
`, Loopback(s.V6, s.Port), Loopback(!s.V6, s.Port), pair, u.URL, "login."+Domain, s.Issuer, s.Metrics)
	writeApps(&b, apps)
	if !strings.Contains(extra, "crypto:") {
		b.WriteString(s.profile())
	}
	b.WriteString(extra)
	if err := os.WriteFile(s.GatewayConfig, []byte(b.String()), 0o600); err != nil {
		s.o.Fatalf("%v", err)
	}
}

func writeApps(b *strings.Builder, apps []App) {
	b.WriteString("apps:\n")
	for _, a := range apps {
		fmt.Fprintf(b, "  - id: %s\n    name: %q\n    upstreams: [%q]\n    allow_addresses: [\"127.0.0.0/8\", \"::1\"]\n", a.ID, a.Name, a.Upstream)
		if a.scheme() == "http" {
			fmt.Fprintf(b, "    hosts: [%s]\n", a.Host())
		}
		b.WriteString(a.Extra)
	}
}

func randomText(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

// User is a user of a site.
type User struct{ ID, Name, Password string }

// NewUser adds a user.
func (s *Site) NewUser(name string) *User {
	s.o.Helper()
	u := &User{Name: name, Password: randomText(9)}
	var done control.Done
	s.Do("POST", "/v1/users", control.NewUser{Name: name, Password: u.Password}, &done)
	u.ID = done.ID
	return u
}

// Grant gives u applications; device is a deviceId, any or browser. It returns
// the grant's id once the gateway has it.
func (s *Site) Grant(u *User, device string, until time.Time, apps ...string) string {
	s.o.Helper()
	var done control.Done
	s.Do("POST", "/v1/grants", control.NewGrant{User: u.ID, Device: device, Apps: apps, Until: until}, &done)
	return done.ID
}

// Lock locks a user and returns what the control center says of it, when the
// gateways have confirmed.
func (s *Site) Lock(u *User, message string) control.Locked {
	s.o.Helper()
	var out control.Locked
	s.Do("POST", "/v1/locks", control.NewLock{Kind: "user", ID: u.ID, Message: message, Wait: 5 * time.Second}, &out)
	return out
}

// Unlock takes a lock away.
func (s *Site) Unlock(u *User) { s.o.Helper(); s.Do("DELETE", "/v1/locks/user/"+u.ID, nil, nil) }

// Agent is an agent of a site, a process of its own.
type Agent struct {
	*Process
	ID, DeviceID string
	SOCKS5       string   // address of the face
	Forwards     []string // addresses, in the order of the targets
	Config       string
	Client       *agent.Client
	o            Owner
}

// NewAgent enrols an agent and starts it. Each target is an application to
// which a port is forwarded.
func (s *Site) NewAgent(o Owner, name string, forwards ...App) *Agent {
	o.Helper()
	return s.NewAgentWith(o, name, "", forwards...)
}

// NewAgentWith is NewAgent with further lines of agent.yaml.
func (s *Site) NewAgentWith(o Owner, name, lines string, forwards ...App) *Agent {
	o.Helper()
	e := s.enrol("agent", name)
	a := &Agent{ID: e.ID, DeviceID: e.DeviceID, SOCKS5: Loopback(s.V6, Port(o)), Config: filepath.Join(s.Dir, name, "agent.yaml"), o: o}
	var b strings.Builder
	fmt.Fprintf(&b, "control: %s\nsocks5: [%q]\n%s%s", e.URL, a.SOCKS5, s.profile(), lines)
	if len(forwards) > 0 {
		b.WriteString("forwards:\n")
	}
	for i, f := range forwards {
		at := Loopback(s.V6, Port(o))
		if i > 0 && f.Address() == forwards[i-1].Address() { // one port for TCP and UDP, as the application has
			at = a.Forwards[i-1]
		}
		a.Forwards = append(a.Forwards, at)
		protocol := "tcp"
		if f.scheme() == "udp" {
			protocol = "udp"
		}
		fmt.Fprintf(&b, "  - {listen: %q, app: %s, protocol: %s}\n", at, f.ID, protocol)
	}
	if err := os.WriteFile(a.Config, []byte(b.String()), 0o600); err != nil {
		o.Fatalf("%v", err)
	}
	a.Process = Run(o, "agent "+name, "agent", "run", "-c", a.Config)
	a.Client = agent.NewClient(filepath.Join(s.Dir, name, "agent.sock"))
	o.Cleanup(a.Client.Close)
	a.until(30*time.Second, func() error { _, err := a.Status(); return err })
	return a
}

// Status returns the agent's state.
func (a *Agent) Status() (*agent.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return a.Client.Status(ctx)
}

// Login signs u in.
func (a *Agent) Login(u *User) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	answer, err := a.Client.Login(ctx, agent.LoginRequest{UserID: u.ID, Factors: []wire.Factor{{AuthenticationType: 1, AuthenticationContent: u.Password}}})
	if err != nil {
		return err
	}
	if !answer.OK {
		return fmt.Errorf("sign in on the agent: %s %s", answer.Reason, answer.EN)
	}
	return nil
}

// SignIn signs u in and waits for the tunnel.
func (a *Agent) SignIn(u *User) {
	a.o.Helper()
	if err := a.Login(u); err != nil {
		a.o.Fatalf("%v", err)
	}
	var last any
	err := wait(context.Background(), 20*time.Second, func() error {
		st, err := a.Status()
		if err != nil {
			return err
		}
		last = st
		if st.Gateway == "" || st.Resources == 0 {
			return errNotYet
		}
		return nil
	})
	if err != nil {
		a.o.Fatalf("no tunnel of %s: %v: %+v", a.Name, err, last)
	}
}
