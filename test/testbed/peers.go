package testbed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// reachable says why nothing takes a connection at addr.
func reachable(addr string) error {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	return c.Close()
}

// Nginx is a real web server as the application: it serves files, takes
// uploads by PUT below /up/, and logs each request with the fields that say who
// asks.
type Nginx struct {
	*Process
	Root  string // its files
	port  int
	log   string
	owner Owner
}

// NginxSeen is one line of nginx's log.
type NginxSeen struct {
	Method        string `json:"method"`
	URI           string `json:"uri"`
	Status        string `json:"status"`
	Host          string `json:"host"`
	User          string `json:"user"`
	Device        string `json:"device"`
	Session       string `json:"session"`
	Request       string `json:"request"`
	Proto         string `json:"proto"`
	ForwardedFor  string `json:"forwarded_for"`
	ForwardedHost string `json:"forwarded_host"`
	RealIP        string `json:"real_ip"`
	Forwarded     string `json:"forwarded"`
	RemoteUser    string `json:"remote_user"`
	Cookie        string `json:"cookie"`
	Authorization string `json:"authorization"`
}

// URL returns the server's address over IPv4 or IPv6.
func (n *Nginx) URL(v6 bool) string { return "http://" + Loopback(v6, n.port) }

// NewNginx starts nginx on loopback.
func NewNginx(o Owner) *Nginx {
	o.Helper()
	program := lookPath(o, "nginx")
	dir := folder(o)
	n := &Nginx{Root: filepath.Join(dir, "www"), port: Port(o), log: filepath.Join(dir, "access.log"), owner: o}
	conf := fmt.Sprintf(`daemon off; master_process off; worker_processes 1; pid %[1]s/nginx.pid; error_log stderr crit;
events { worker_connections 512; }
http {
  log_format seen escape=json '{"method":"$request_method","uri":"$request_uri","status":"$status","host":"$http_host",'
    '"user":"$http_x_yumen_user","device":"$http_x_yumen_device","session":"$http_x_yumen_session","request":"$http_x_request_id",'
    '"proto":"$http_x_forwarded_proto","forwarded_for":"$http_x_forwarded_for","forwarded_host":"$http_x_forwarded_host",'
    '"real_ip":"$http_x_real_ip","forwarded":"$http_forwarded","remote_user":"$http_remote_user$http_x_remote_user","cookie":"$http_cookie","authorization":"$http_authorization"}';
  access_log %[1]s/access.log seen;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
  client_max_body_size 0; default_type application/octet-stream; underscores_in_headers on;
  server { listen 127.0.0.1:%[2]d; listen [::1]:%[2]d; root %[1]s/www; location /up/ { dav_methods PUT; create_full_put_path on; } }
}
`, dir, n.port)
	path := filepath.Join(dir, "nginx.conf")
	if err := errors.Join(os.Mkdir(n.Root, 0o700), os.WriteFile(path, []byte(conf), 0o600)); err != nil {
		o.Fatalf("%v", err)
	}
	n.Process = start(o, "nginx", exec.Command(program, "-p", dir, "-c", path, "-e", "stderr"))
	n.until(10*time.Second, func() error { return reachable(Loopback(true, n.port)) })
	return n
}

// Seen returns the requests that nginx has logged.
func (n *Nginx) Seen() []NginxSeen {
	n.owner.Helper()
	raw, err := os.ReadFile(n.log)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.owner.Fatalf("%v", err)
	}
	var out []NginxSeen
	for line := range bytes.Lines(raw) {
		var s NginxSeen
		if err := json.Unmarshal(line, &s); err != nil {
			n.owner.Fatalf("nginx log %q: %v", line, err)
		}
		out = append(out, s)
	}
	return out
}

// lookPath finds a program that test/needs.sh installs.
func lookPath(o Owner, name string) string {
	o.Helper()
	for _, p := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if found, err := exec.LookPath(p); err == nil {
			return found
		}
	}
	o.Fatalf("%s is not installed (run make needs)", name)
	return ""
}

// NewRedis starts a Redis server on loopback and returns its port.
func NewRedis(o Owner) int {
	o.Helper()
	program, port := lookPath(o, "redis-server"), Port(o)
	p := start(o, "redis-server", exec.Command(program, "--bind", "127.0.0.1", "::1", "--port", strconv.Itoa(port), "--save", "", "--appendonly", "no",
		"--dir", folder(o), "--proto-max-bulk-len", "2gb", "--client-query-buffer-limit", "3gb"))
	p.until(10*time.Second, func() error { return reachable(Loopback(true, port)) })
	return port
}

// PostgreSQL is a database server of a test.
type PostgreSQL struct {
	Port int
	User string
	psql string
}

// NewPostgreSQL starts a PostgreSQL server, or returns nil when the system has
// none.
func NewPostgreSQL(o Owner) *PostgreSQL {
	o.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return nil
	}
	slices.Sort(found)
	bin := filepath.Dir(found[len(found)-1])
	dir, port := folder(o), Port(o)
	data := filepath.Join(dir, "data")
	attr := &syscall.SysProcAttr{}
	if os.Getuid() == 0 { // the server refuses to be root
		u, err := user.Lookup("nobody")
		if err != nil {
			return nil
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(data, 0o700), os.Chown(data, uid, gid)); err != nil {
			o.Fatalf("%v", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", data, "-U", "e2e", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
	initdb.SysProcAttr, initdb.Dir = attr, "/"
	if out, err := initdb.CombinedOutput(); err != nil {
		o.Fatalf("initdb: %v\n%s", err, out)
	}
	server := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-h", "127.0.0.1,::1", "-p", strconv.Itoa(port), "-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=20")
	copied := *attr
	server.SysProcAttr, server.Dir = &copied, "/"
	p := start(o, "postgres", server)
	pg := &PostgreSQL{Port: port, User: "e2e", psql: filepath.Join(bin, "psql")}
	p.until(30*time.Second, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := pg.Query(ctx, Loopback(true, port), "select 1")
		return err
	})
	return pg
}

// Query asks the server through address, which may be a port that leads there.
func (p *PostgreSQL) Query(ctx context.Context, address, sql string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, p.psql, "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", host, "-p", port, "-U", p.User, "-d", "postgres", "-c", sql)
	cmd.Env = append(os.Environ(), "PGCONNECT_TIMEOUT=10", "PGSSLMODE=disable")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("psql: %w: %s", err, errs.String())
	}
	return string(bytes.TrimSpace(out.Bytes())), nil
}
