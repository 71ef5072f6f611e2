//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"text/template"
	"time"
)

// bench is one run.
type bench struct {
	dir    string
	core   int // of the gateways
	cookie string
	roots  *x509.CertPool
	tls    *tls.Config

	peers    []*peer // nginx, haproxy, net/http, perhaps caddy and another yumen, yumen
	direct   *peer   // the application itself, without TLS
	children []*exec.Cmd

	Yumen, Upstream, Metrics     int // ports
	BeforePort, BeforeMetricPort int
	ManyPort, ManyMetrics        int
	LoggedPort, LoggedMetrics    int
	Nginx, Haproxy               int
	Caddy, NetHTTP               int

	AccessLog bool // of the Yumen whose configuration is written
}

// logged is the name of the Yumen that writes an access log.
const logged = "logged"

// peer is one gateway that is measured.
type peer struct {
	name  string
	port  int
	cmd   *exec.Cmd
	extra bool   // measured only by the workloads that name it
	admin string // Yumen's operator socket
}

func addr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func (p *peer) addr() string { return addr(p.port) }
func (p *peer) url() string  { return "https://" + net.JoinHostPort(hostName, strconv.Itoa(p.port)) }
func (p *peer) pid() int     { return p.cmd.Process.Pid }

func (b *bench) at(name string) string { return filepath.Join(b.dir, name) }

// Dir is for the templates.
func (b *bench) Dir() string { return b.dir }

// start starts everything and waits until each peer answers a request. The
// caller stops what it returns, even after an error.
func start(ctx context.Context, dir string, o options) (*bench, error) {
	b := &bench{dir: dir, core: o.gatewayCore}
	if err := freePorts(&b.Yumen, &b.Upstream, &b.Metrics, &b.Nginx, &b.Haproxy, &b.BeforePort, &b.BeforeMetricPort, &b.ManyPort, &b.ManyMetrics, &b.LoggedPort, &b.LoggedMetrics, &b.Caddy, &b.NetHTTP); err != nil {
		return b, err
	}
	if err := b.layout(o.grants); err != nil {
		return b, fmt.Errorf("lay out site: %w", err)
	}
	b.tls = clientConfig(b.roots)
	for name, text := range map[string]*template.Template{"nginx.conf": nginxConfig, "haproxy.cfg": haproxyConfig, "Caddyfile": caddyConfig} {
		f, err := os.Create(b.at(name))
		if err != nil {
			return b, err
		}
		if err := errors.Join(text.Execute(f, b), f.Close()); err != nil {
			return b, fmt.Errorf("write %s: %w", name, err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return b, err
	}
	yumen, err := filepath.Abs(o.yumen)
	if err != nil {
		return b, err
	}
	b.direct = &peer{name: "without", port: b.Upstream}
	if b.direct.cmd, err = b.spawn("upstream", nil, self, "upstream", b.direct.addr()); err != nil {
		return b, err
	}
	on := []string{"taskset", "-c", strconv.Itoa(b.core)}
	type process struct {
		name  string
		port  int
		extra bool
		env   []string
		args  []string
	}
	all := []process{
		{"nginx", b.Nginx, false, nil, []string{"nginx", "-e", "stderr", "-p", dir, "-c", b.at("nginx.conf")}},
		{"haproxy", b.Haproxy, false, nil, []string{"haproxy", "-db", "-f", b.at("haproxy.cfg")}},
		{"net/http", b.NetHTTP, true, []string{"GOMAXPROCS=1"}, []string{self, "net/http", addr(b.NetHTTP), addr(b.Upstream), b.at("site.crt"), b.at("site.key")}},
	}
	if _, err := exec.LookPath("caddy"); err == nil {
		all = append(all, process{"caddy", b.Caddy, true, []string{"GOMAXPROCS=1", "HOME=" + dir, "XDG_CONFIG_HOME=" + dir, "XDG_DATA_HOME=" + dir},
			[]string{"caddy", "run", "--config", b.at("Caddyfile"), "--adapter", "caddyfile"}})
	}
	if o.before != "" {
		if err := b.layoutCopy("before", b.BeforePort, b.BeforeMetricPort); err != nil {
			return b, err
		}
		all = append(all, process{"before", b.BeforePort, false, []string{"GOMAXPROCS=1"}, []string{o.before, "gateway", "run", "-c", b.at("before/yumen.yaml")}})
	}
	if err := b.layoutCopy(logged, b.LoggedPort, b.LoggedMetrics); err != nil {
		return b, err
	}
	all = append(all, process{logged, b.LoggedPort, true, []string{"GOMAXPROCS=1"}, []string{yumen, "gateway", "run", "-c", b.at(logged + "/yumen.yaml")}})
	all = append(all, process{"yumen", b.Yumen, false, []string{"GOMAXPROCS=1"}, []string{yumen, "gateway", "run", "-c", b.at("yumen.yaml")}})
	for _, p := range all {
		cmd, err := b.spawn(p.name, p.env, append(on[:3:3], p.args...)...)
		if err != nil {
			return b, err
		}
		b.peers = append(b.peers, &peer{name: p.name, port: p.port, cmd: cmd, extra: p.extra})
	}
	b.peers[len(b.peers)-1].admin = b.at("state/admin.sock")
	for _, p := range append(b.peers, b.direct) {
		if err := b.ready(ctx, p); err != nil {
			said, _ := os.ReadFile(b.at(filepath.Base(p.name) + ".log"))
			return b, fmt.Errorf("start %s: %w\n%s", p.name, err, said)
		}
	}
	return b, nil
}

// spawn starts a process that dies with us and says what it has to say in a
// file of its own.
func (b *bench) spawn(name string, env []string, args ...string) (*exec.Cmd, error) {
	out, err := os.Create(b.at(filepath.Base(name) + ".log"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	b.children = append(b.children, cmd)
	return cmd, nil
}

// ready waits for the first good answer.
func (b *bench) ready(ctx context.Context, p *peer) (err error) {
	for range 100 {
		var c *client
		if c, err = b.dial(ctx, p); err == nil {
			err = c.get("/1k")
			c.Close()
			if err == nil {
				return nil
			}
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return err
}

// stop ends our own processes, and waits for them.
func (b *bench) stop() error {
	for _, c := range b.children {
		_ = c.Process.Signal(syscall.SIGTERM) // one that has ended already needs none
	}
	for _, c := range b.children {
		group := c.Process.Pid
		late := time.AfterFunc(15*time.Second, func() { _ = syscall.Kill(-group, syscall.SIGKILL) })
		_ = c.Wait() // how a process that was told to end has ended says nothing
		late.Stop()
	}
	return nil
}

// freePorts finds ports that nobody uses.
func freePorts(ports ...*int) error {
	for _, p := range ports {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("find a free port: %w", err)
		}
		defer ln.Close()
		*p = ln.Addr().(*net.TCPAddr).Port
	}
	return nil
}

// The peers have Debian's defaults, except for what makes them do the same
// work: one worker, TLS 1.3 with AES-128-GCM (Go's own choice), upstream
// connections that are kept, the client's address passed on, and no end of a
// connection after so many requests. They write no access log.

var nginxConfig = template.Must(template.New("nginx").Parse(`daemon off;
worker_processes 1;
pid {{.Dir}}/nginx.pid;
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path {{.Dir}}/nginx-body;
  proxy_temp_path {{.Dir}}/nginx-proxy;
  fastcgi_temp_path {{.Dir}}/nginx-fastcgi;
  uwsgi_temp_path {{.Dir}}/nginx-uwsgi;
  scgi_temp_path {{.Dir}}/nginx-scgi;
  keepalive_requests 1000000000;
  upstream application {
    server 127.0.0.1:{{.Upstream}};
    keepalive 512;
    keepalive_requests 1000000000;
  }
  server {
    listen 127.0.0.1:{{.Nginx}} ssl http2;
    server_name localhost;
    ssl_certificate {{.Dir}}/site.crt;
    ssl_certificate_key {{.Dir}}/site.key;
    ssl_protocols TLSv1.3;
    ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    location / {
      proxy_pass http://application;
      proxy_http_version 1.1;
      proxy_max_temp_file_size 0;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto https;
    }
  }
}
`))

var haproxyConfig = template.Must(template.New("haproxy").Parse(`global
  maxconn 4096
  nbthread 1
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
defaults
  mode http
  option forwardfor
  timeout connect 5s
  timeout client 75s
  timeout server 50s
frontend site
  bind 127.0.0.1:{{.Haproxy}} ssl crt {{.Dir}}/site.pem alpn h2,http/1.1
  http-request set-header X-Forwarded-Proto https
  default_backend application
backend application
  server one 127.0.0.1:{{.Upstream}}
`))

var caddyConfig = template.Must(template.New("caddy").Parse(`{
	admin off
	auto_https off
	storage file_system {{.Dir}}/caddy
	servers {
		protocols h1 h2
	}
}
https://localhost:{{.Caddy}} {
	bind 127.0.0.1
	tls {{.Dir}}/site.crt {{.Dir}}/site.key {
		protocols tls1.3
	}
	reverse_proxy 127.0.0.1:{{.Upstream}} {
		transport http {
			keepalive_idle_conns 1024
			keepalive_idle_conns_per_host 1024
			compression off
		}
	}
}
`))

var yumenConfig = template.Must(template.New("yumen").Parse(`name: bench
listen: ["127.0.0.1:{{.Yumen}}"]
certificates:
  - cert_file: site.crt
    key_file: site.key
lists:
  grants: grants.ndjson
  policies: policies.ndjson
login:                     # its sessions count; its provider is never asked
  host: login.localhost
  issuer: https://login.localhost
  client_id: bench
  map: claim
  ca_file: root.crt
  cookie_key_file: cookie.key
metrics:
  listen: 127.0.0.1:{{.Metrics}}
apps:
  - id: APP00000001
    hosts: [localhost]
    upstreams: ["http://127.0.0.1:{{.Upstream}}"]
    allow_addresses: ["127.0.0.0/8"]
{{if .AccessLog}}access_log: {file: access.jsonl}
{{end}}`))
