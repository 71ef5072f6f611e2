package gateway

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sound is a small good configuration; tests put one fault into it.
const sound = `
control: {url: "https://control.test:8444"}
apps:
  - id: APP00000001
    hosts: [one.test]
    upstreams: ["https://10.0.0.1:8443"]
`

func loadText(t *testing.T, text string) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gateway.yaml")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return Load(path)
}

func TestConfigNamesEachFaultByItsPath(t *testing.T) {
	app := func(more string) string { return sound + "    " + more + "\n" }
	for _, c := range []struct{ name, text, want string }{
		{"no lists", "apps: []\n", "control: missing"},
		{"two deciders", sound + "lists: {grants: a, policies: b}\n", "lists: cannot stand beside control"},
		{"half the lists", "lists: {grants: a}\n", "lists: grants and policies"},
		{"plain control center", "control: {url: 'http://control.test'}\n", "control.url:"},
		{"no control url", "control: {}\n", "control.url:"},
		{"control address", "control: {url: 'https://c.test', address: c.test}\n", "control.address:"},
		{"id", sound + "id: GW0000000012\n", "id:"},
		{"device", sound + "device: DEV000000012\n", "device:"},
		{"listen", sound + "listen: [nowhere]\n", "listen[0]:"},
		{"listen port", sound + "listen: [':8443', ':99999']\n", "listen[1]:"},
		{"certificate", sound + "certificates: [{cert_file: a}]\n", "certificates[0]:"},
		{"limits", sound + "limits: {connections: -1, hello_timeout: 1h}\n", "limits.connections:"},
		{"limits, the second fault", sound + "limits: {connections: -1, hello_timeout: 1h}\n", "limits.hello_timeout:"},
		{"proxy", sound + "proxy: {limits: {header_bytes: -1}}\n", "proxy.limits.header_bytes:"},
		{"audit", sound + "audit: {max_bytes: -1}\n", "audit.max_bytes:"},
		{"audit keep", sound + "audit: {keep: -1}\n", "audit.keep:"},
		{"metrics", sound + "metrics: {listen: '0.0.0.0:9464'}\n", "metrics.listen:"},
		{"metrics, a name", sound + "metrics: {listen: 'localhost:9464'}\n", "metrics.listen:"},
		{"log level", sound + "log: {level: loud}\n", "log.level:"},
		{"app id", strings.ReplaceAll(sound, "APP00000001", "APP-1"), "apps[0].id:"},
		{"app upstream", app("upstreams: []"), ""}, // a duplicate key
		{"app level", app("level: -1"), "apps[0].level:"},
		{"app without host", strings.ReplaceAll(sound, "[one.test]", "[]"), "apps[0].hosts:"},
		{"app address as host", strings.ReplaceAll(sound, "one.test", "10.0.0.1"), "apps[0].hosts[0]:"},
		{"app path", app("public_paths: ['x']"), "apps[0].public_paths[0]:"},
		{"app network", app("allow_addresses: ['10']"), "apps[0].allow_addresses[0]:"},
		{"ceiling type", sound + "ceiling: [{type: magic, data: '1'}]\n", "ceiling[0]:"},
		{"ceiling data", sound + "ceiling: [{type: ipallow, data: '10.0.0.0/8'}, {type: ipallow, data: 'x'}]\n", "ceiling[1]:"},
		{"ceiling bind", sound + "ceiling: [{type: bind, data: 'POL00000001 *'}]\n", "ceiling[0].type:"},
		{"ceiling scope", sound + "ceiling: [{type: ipallow, data: '10.0.0.0/8', scope: 'a b c'}]\n", "ceiling[0].scope:"},
		{"ceiling of nobody's application", sound + "ceiling: [{type: ipallow, data: '10.0.0.0/8', scope: 'APP00000001,USR00000001/APP00000O01'}]\n", "ceiling[0].scope:"},
		{"login", sound + "login: {host: login.test}\n", "login.client_id:"},
		{"login issuer", sound + "login: {host: login.test, client_id: g, issuer: 'http://idp.test'}\n", "login.issuer:"},
		{"login host with port", sound + "login: {host: 'login.test:8443', client_id: g, issuer: 'https://idp.test'}\n", "login.host:"},
		{"login on an application", sound + "login: {host: One.Test, client_id: g, issuer: 'https://idp.test'}\n", "login.host: \"one.test\" is also apps[0].hosts[0]"},
		{"login lifetime", sound + "login: {host: login.test, client_id: g, issuer: 'https://idp.test', lifetime: 721h}\n", "login.lifetime:"},
		{"login map", sound + "login: {host: login.test, client_id: g, issuer: 'https://idp.test', map: x}\n", "login.map:"},
		{"login without a mapper", strings.ReplaceAll(sound, `control: {url: "https://control.test:8444"}`, "lists: {grants: a, policies: b}") +
			"login: {host: login.test, client_id: g, issuer: 'https://idp.test'}\n", "login.map:"},
		{"application link", sound + "app_link: {}\n", "app_link.host:"},
		{"application link on an application", sound + "app_link: {host: one.test}\n", "app_link.host:"},
		{"application link on the login", sound + "login: {host: in.test, client_id: g, issuer: 'https://idp.test'}\napp_link: {host: in.test}\n", "app_link.host:"},
		{"application link with port", sound + "app_link: {host: 'gw.test:1'}\n", "app_link.host:"},
		{"tunnel", sound + "tunnel: {flows: -1}\n", "tunnel"},
		{"unknown key", sound + "colour: red\n", "[7:1]"},
		{"unknown key, deep", app("colour: red"), "[7:5]"},
		{"wrong type", sound + "audit: {keep: many}\n", "[7:15]"},
		{"a key twice", sound + "apps: []\n", "[7:1]"},
		{"a second document", sound + "---\nceiling: []\n", "second document"},
		{"empty", "", "empty"},
		{"comments alone", "# nothing\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := loadText(t, c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one that says %q", err, c.want)
			}
		})
	}
}

func TestConfigTellsAllFaultsAtOnce(t *testing.T) {
	_, err := loadText(t, sound+"id: GW0000000012\nlog: {level: loud}\nmetrics: {listen: ':1'}\n")
	for _, want := range []string{"\n  id:", "\n  log.level:", "\n  metrics.listen:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one that says %q", err, want)
		}
	}
}

func TestConfigDefaults(t *testing.T) {
	c, err := loadText(t, sound)
	must(t, err)
	for name, v := range map[string][2]string{
		"listen":         {strings.Join(c.Listen, " "), ":8443"},
		"state_dir":      {c.StateDir, filepath.Join(c.dir, "state")},
		"keys.dir":       {c.Keys.Dir, filepath.Join(c.dir, "keys")},
		"passphrase":     {c.Keys.PassphraseFile, filepath.Join(c.dir, "passphrase")},
		"admin.socket":   {c.Admin.Socket, filepath.Join(c.dir, "state", "admin.sock")},
		"audit.file":     {c.Audit.File, filepath.Join(c.dir, "state", "audit.jsonl")},
		"metrics.listen": {c.Metrics.Listen, "127.0.0.1:9464"},
		"log.level":      {c.Log.Level, "info"},
	} {
		if v[0] != v[1] {
			t.Errorf("%s: %q, want %q", name, v[0], v[1])
		}
	}
	if _, err := loadText(t, sound+"metrics: {listen: '[::1]:9464'}\nlogin: {host: 登录.test, client_id: g, issuer: 'https://idp.test'}\n"); err != nil {
		t.Errorf("loopback in IPv6, a Chinese name: %v", err)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestConfigWarns(t *testing.T) {
	c, err := loadText(t, strings.ReplaceAll(sound, "https://10", "http://10")+"    public_paths: [/health]\n    no_identity: true\n    allow_addresses: [127.0.0.1]\n")
	must(t, err)
	all := strings.Join(c.Warnings(), "\n")
	for _, want := range []string{"public_paths", "plain HTTP", "no_identity", "allow_addresses"} {
		if !strings.Contains(all, want) {
			t.Errorf("warnings %q lack %q", all, want)
		}
	}
}

// S40: the gateway does not start on secrets that others may read, and says
// what to do. Nothing is left open after a refused start.
func TestS40_StartIsRefusedWithTheRemedy(t *testing.T) {
	other := func(w *world) { w.config(twoApps) }
	for _, c := range []struct {
		name, want string
		change     func(*world)
	}{
		{"key for the group", "chmod 600", func(w *world) { must(t, os.Chmod(filepath.Join(w.dir, "keys", "tls.key"), 0o640)) }},
		{"key folder for others", "chmod 700", func(w *world) { must(t, os.Chmod(filepath.Join(w.dir, "keys"), 0o755)) }},
		{"key as a link", "symbolic link", func(w *world) {
			key := filepath.Join(w.dir, "keys", "enc.key")
			must(t, os.Rename(key, key+".real"))
			must(t, os.Symlink(key+".real", key))
		}},
		{"passphrase for others", "chmod 600", func(w *world) { must(t, os.Chmod(filepath.Join(w.dir, "passphrase"), 0o644)) }},
		{"wrong passphrase", "passphrase is wrong", func(w *world) { w.write("passphrase", "another\n", 0o600) }},
		{"no keys", "yumen enroll", func(w *world) { must(t, os.RemoveAll(filepath.Join(w.dir, "keys"))) }},
		{"state folder for others", "chmod 700", func(w *world) {
			must(t, os.Mkdir(filepath.Join(w.dir, "state"), 0o700))
			must(t, os.Chmod(filepath.Join(w.dir, "state"), 0o777))
		}},
		{"site key for others", "certificates[0].key_file: mode", func(w *world) {
			w.write("site.key", "x", 0o644)
			w.config(twoApps + "certificates: [{cert_file: site.crt, key_file: site.key}]\n")
		}},
		{"application key for others", "apps[1].tls.key_file: mode", func(w *world) {
			w.write("app.key", "x", 0o640)
			w.config(twoApps + "    tls: {cert_file: app.crt, key_file: app.key}\n")
		}},
		{"another gateway's id", "enrol again", func(w *world) { w.config(twoApps + "id: GW000000009\n") }},
		{"no list", "no such file", func(w *world) { must(t, os.Remove(filepath.Join(w.dir, "grants.list"))) }},
		{"versions altered", "restore it", func(w *world) {
			must(t, os.Mkdir(filepath.Join(w.dir, "state"), 0o700))
			w.write("state/list-files.json", "{", 0o600)
		}},
		{"port in use", "another process", func(w *world) {
			w.config(twoApps + "admin: {socket: a.sock}\n") // the same folder otherwise
			w.start()
			raw, err := os.ReadFile(filepath.Join(w.dir, "gateway.yaml"))
			must(t, err)
			w.write("gateway.yaml", strings.ReplaceAll(strings.ReplaceAll(string(raw), "listen: ['127.0.0.1:0']", "listen: ['"+w.addr+"']"), "a.sock", "b.sock")+"state_dir: other\n", 0o600)
		}},
		{"socket in use", "another process serves it", func(w *world) {
			w.start()
			w.config(twoApps + "state_dir: other\nadmin: {socket: state/admin.sock}\n")
		}},
		{"state folder in use", "another gateway runs", func(w *world) {
			w.start()
			w.config(twoApps + "admin: {socket: b.sock}\n")
		}},
		{"configuration for everybody", "chmod o-w", func(w *world) { must(t, os.Chmod(filepath.Join(w.dir, "gateway.yaml"), 0o666)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			other(w)
			c.change(w)
			g, err := New(t.Context(), filepath.Join(w.dir, "gateway.yaml"), Options{Logger: quiet()})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("start: %v, want an error that says %q", err, c.want)
			}
			if g != nil && err != nil {
				t.Error("a gateway beside an error")
			}
		})
	}
}

func TestDurationsOfTheAdminInterfaceAreText(t *testing.T) {
	d := Duration(15 * time.Minute)
	b, err := d.MarshalText()
	if err != nil || string(b) != "15m0s" {
		t.Errorf("%s %v", b, err)
	}
	if err := d.UnmarshalText([]byte("x")); err == nil {
		t.Error("no error")
	}
}
