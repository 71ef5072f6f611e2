package demo

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
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/ctlclient"
)

// Options choose what is laid out.
type Options struct {
	Dir string // folder of the site; made when it is absent
	App string // URL of an application of the user's own, in place of the demo's portal; default: the demo's
}

// The keys of a laboratory are under a random passphrase of 256 bits, which
// needs no stretching.
const iterations = 10_000

// layout makes the folder of a site, by the steps that a real one takes:
// control center first, then everything else by enrolment.
func layout(ctx context.Context, o Options) (info *Info, err error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("lay out demo: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("lay out demo: %w", err)
	}
	ports, err := freePorts(8443, 8444, 8445, 9464, 1080, 8081, 8082, 8083)
	if err != nil {
		return nil, err
	}
	at := func(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	host := func(name string, port int) string { return "https://" + net.JoinHostPort(name, strconv.Itoa(port)) }
	info = &Info{
		Dir: dir, Socket: filepath.Join(dir, "demo.sock"), CAFile: filepath.Join(dir, "ca.crt"),
		Gateway: GatewayInfo{
			Address: at(ports[0]), Port: ports[0], Metrics: at(ports[3]),
			Config: filepath.Join(dir, "gateway", "gateway.yaml"), Socket: filepath.Join(dir, "gateway", "state", "admin.sock"),
			Audit: filepath.Join(dir, "gateway", "state", "audit"),
		},
		Login: "login.localhost", Issuer: host("localhost", ports[2]),
		Agent: AgentInfo{
			SOCKS5: at(ports[4]), Config: filepath.Join(dir, "agent", "agent.yaml"), Socket: filepath.Join(dir, "agent", "agent.sock"),
		},
		Apps: []AppInfo{
			{ID: Portal, Name: "门户 Portal", URL: host("portal.localhost", ports[0]), Backend: "http://" + at(ports[5]), Keys: filepath.Join(dir, "connector", "keys")},
			{ID: Finance, Name: "财务 Finance", URL: host("finance.localhost", ports[0]), Backend: "http://" + at(ports[6])},
			{ID: Echo, Name: "回声 Echo", Address: at(ports[7]), Backend: "tcp://" + at(ports[7])},
		},
	}
	if o.App != "" {
		u, err := url.Parse(o.App)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
			return nil, fmt.Errorf("lay out demo: --app %q: an http or https URL of a whole application is needed, such as http://127.0.0.1:8080", o.App)
		}
		info.Apps[0].Backend = u.Scheme + "://" + u.Host
	}
	login := host(info.Login, ports[0]) + "/.yumen/"
	info.Control.Config, err = control.Init(control.InitConfig{
		Dir: filepath.Join(dir, "control"), URL: host("127.0.0.1", ports[1]), Hosts: []string{"localhost", "::1"},
		Listen: at(ports[1]), Issuer: info.Issuer, Client: login + "callback", Logout: login + "leave?done=1",
		CA: lab.Config{Name: "Yumen demo", Iterations: iterations},
	})
	if err != nil {
		return nil, err
	}
	cc, err := control.LoadConfig(info.Control.Config)
	if err != nil {
		return nil, err
	}
	cc = cc.Defaults()
	info.Control.ID, info.Control.URL, info.Control.Socket, info.Control.Audit = cc.ID, cc.URL, cc.Socket(), cc.AuditFile

	info.TLCP = TLCPInfo{
		CAFile: filepath.Join(dir, "tlcp-root.crt"), Gateway: info.Gateway.Address, Control: at(ports[1]), Host: "portal.localhost",
	}

	c := &controlRole{config: info.Control.Config}
	if err := c.start(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	if err := populate(ctx, info); err != nil {
		return nil, err
	}
	if err := siteCertificate(info, cc); err != nil {
		return nil, err
	}
	if err := writeConfigs(info); err != nil {
		return nil, err
	}
	return info, info.write()
}

// freePorts returns a free loopback port for each wanted one: that one, or
// whatever the system gives.
func freePorts(wanted ...int) ([]int, error) {
	var held []net.Listener
	defer func() {
		for _, ln := range held {
			ln.Close()
		}
	}()
	var out []int
	for _, p := range wanted {
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
		if err != nil {
			if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				return nil, fmt.Errorf("find a free port: %w", err)
			}
		}
		held = append(held, ln)
		out = append(out, ln.Addr().(*net.TCPAddr).Port)
	}
	return out, nil
}

// populate fills the control center through its operator's socket, and enrols
// the others with the codes that it gives.
func populate(ctx context.Context, info *Info) error {
	admin := control.NewAdminClient(info.Control.Socket)
	do := func(path string, in, out any) error {
		if err := admin.Do(ctx, "POST", path, in, out); err != nil {
			return fmt.Errorf("set up control center: %w", err)
		}
		return nil
	}
	for _, name := range []string{"alice", "bob"} {
		u := UserInfo{Name: name, Password: randomText(9)}
		var done control.Done
		if err := do("/v1/users", control.NewUser{Name: name, Password: u.Password}, &done); err != nil {
			return err
		}
		u.ID = done.ID
		info.Users = append(info.Users, u)
	}
	for _, a := range info.Apps {
		app := map[string]any{"id": a.ID, "name": a.Name}
		if a.Address != "" {
			app["addresses"], app["hosts"] = []string{a.Address}, []string{"echo.demo"}
		}
		if err := do("/v1/apps", app, nil); err != nil {
			return err
		}
	}
	for _, g := range []control.NewGrant{
		{User: "alice", Device: "browser", Apps: []string{Portal}},
		{User: "alice", Device: "any", Apps: []string{Portal, Echo}},
		{User: "bob", Device: "browser", Apps: []string{Portal, Finance}},
	} {
		if err := do("/v1/grants", g, nil); err != nil {
			return err
		}
	}
	// A policy that everybody meets, so that there is one to look at and change.
	if err := do("/v1/policies", map[string]string{"policyName": "回环地址 loopback only", "policyType": "ipallow", "policyData": "127.0.0.0/8,::1"}, nil); err != nil {
		return err
	}
	enrol := func(kind, id, folder string, addresses ...string) (*ctlclient.Enrolled, error) {
		var code control.NewCode
		if err := do("/v1/devices", control.NewDevice{Kind: kind, ID: id, Name: "demo", Addresses: addresses}, &code); err != nil {
			return nil, err
		}
		dir := filepath.Join(info.Dir, folder)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		pass := randomText(32)
		if err := os.WriteFile(filepath.Join(dir, "passphrase"), []byte(pass+"\n"), 0o600); err != nil {
			return nil, err
		}
		return ctlclient.Enrol(ctx, ctlclient.EnrolConfig{
			Code: code.Code, Dir: filepath.Join(dir, "keys"), Passphrase: []byte(pass), DeviceName: "demo " + kind, Iterations: iterations,
		})
	}
	gw, err := enrol("gateway", "", "gateway", info.Gateway.Address)
	if err != nil {
		return err
	}
	info.Gateway.ID = gw.ID
	ag, err := enrol("agent", "", "agent")
	if err != nil {
		return err
	}
	info.Agent.ID, info.Agent.DeviceID, info.Agent.UserID = ag.ID, ag.DeviceID, info.User("alice").ID
	_, err = enrol("app", Portal, "connector")
	return err
}

// siteCertificate issues the certificate that browsers see, and writes the root
// that curl and browsers need.
func siteCertificate(info *Info, cc control.Config) error {
	pass, err := keystore.ReadPassphrase(cc.PassphraseFile)
	if err != nil {
		return err
	}
	ca, err := lab.LoadConfig(lab.Config{Name: "Yumen demo", Iterations: iterations}, cc.CADir, pass)
	if err != nil {
		return err
	}
	if err := os.WriteFile(info.CAFile, ca.RootPEM(keystore.TLSRoot), 0o644); err != nil {
		return fmt.Errorf("write root: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make site certificate: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return fmt.Errorf("make site certificate: %w", err)
	}
	hosts := []string{"portal.localhost", "finance.localhost", info.Login, "gateway.localhost"}
	chain, err := ca.IssueWeb(csr, lab.Options{Hosts: hosts})
	if err != nil {
		return err
	}
	_, err = ca.WebPair(filepath.Dir(info.Gateway.Config), lab.Options{Hosts: hosts})
	if err := errors.Join(err, os.WriteFile(info.TLCP.CAFile, ca.RootPEM(keystore.TLCPRoot), 0o644)); err != nil {
		return fmt.Errorf("make TLCP pair: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("make site certificate: %w", err)
	}
	dir := filepath.Dir(info.Gateway.Config)
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "site.crt"), chain, 0o644),
		os.WriteFile(filepath.Join(dir, "site.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600),
	)
}

func randomText(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

func writeConfigs(info *Info) error {
	for _, f := range []struct {
		path string
		text *template.Template
	}{{info.Gateway.Config, gatewayYAML}, {info.Agent.Config, agentYAML}} {
		var b strings.Builder
		if err := f.text.Execute(&b, info); err != nil {
			return fmt.Errorf("write configuration: %w", err)
		}
		if err := os.WriteFile(f.path, []byte(b.String()), 0o600); err != nil {
			return fmt.Errorf("write configuration: %w", err)
		}
	}
	return nil
}

var gatewayYAML = template.Must(template.New("gateway").Parse(`# Yumen gateway. yumen config check -c FILE names every fault; docs/config.md explains every setting.
# Identifiers come from the certificate in keys/, which yumen enroll wrote; passphrase (mode 0600) opens it.
name: demo-gateway
listen: ["{{.Gateway.Address}}"]
certificates:                        # what browsers see; chosen by the names in it
  - cert_file: site.crt
    key_file: site.key
    sign_cert_file: sign.crt         # the TLCP pair: browsers that speak it get the same sites on the same port
    sign_key_file: sign.key
    enc_cert_file: enc.crt
    enc_key_file: enc.key
control:
  url: {{.Control.URL}}
login:                               # sign-in of browsers by OpenID Connect
  host: {{.Login}}
  issuer: {{.Issuer}}
  client_id: gateway
  ca_file: {{.CAFile}}
app_link:
  host: gateway.localhost            # applications prove themselves here (Table 1)
metrics:
  listen: {{.Gateway.Metrics}}
apps:{{range .Apps}}
  - id: {{.ID}}
    name: "{{.Name}}"
    upstreams: ["{{.Backend}}"]
    allow_addresses: ["127.0.0.0/8", "::1"]   # the demo's applications are on this machine{{if eq .ID "APP00000001"}}
    hosts: [portal.localhost]
    demand_identity: true            # offline until its connector reports (Table 1){{end}}{{if eq .ID "APP00000002"}}
    hosts: [finance.localhost]{{end}}{{end}}
ceiling:                             # what no control center can remove
  - type: ipallow
    data: 127.0.0.0/8,::1
`))

var agentYAML = template.Must(template.New("agent").Parse(`# Yumen agent. Its keys are in keys/, which yumen enroll wrote.
control: {{.Control.URL}}
socks5: ["{{.Agent.SOCKS5}}"]        # serves only the user who runs the agent
`))

// controlRole is the control center, which the demo can stop and start.
type controlRole struct {
	config string
	cancel context.CancelFunc
	done   chan error
}

const startLimit = 20 * time.Second

func (c *controlRole) start() error {
	cfg, err := control.LoadConfig(c.config)
	if err != nil {
		return err
	}
	s, err := control.New(cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel, c.done = cancel, make(chan error, 1)
	go func() { c.done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
		return nil
	case err := <-c.done:
		c.done <- err
		return errors.Join(fmt.Errorf("start control center: %w", err), c.stop())
	case <-time.After(startLimit):
		return errors.Join(errors.New("start control center: not ready in time"), c.stop())
	}
}

// stop ends the control center and waits for it. It does nothing when it does
// not run.
func (c *controlRole) stop() error {
	if c.cancel == nil {
		return nil
	}
	c.cancel()
	c.cancel = nil
	if err := <-c.done; err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("control center: %w", err)
	}
	return nil
}
