package control

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/internal/audit"
)

func TestInitMakesACompleteControlCenter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "site")
	c := InitConfig{Dir: dir, URL: "https://control.test:18443", Issuer: "https://login.test:19443", Client: "https://gw.test/cb",
		Hosts: []string{"::1"}, CA: lab.Config{Iterations: 1000}}
	file, err := Init(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Init(c); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("a second time: %v", err)
	}
	// The folder can be moved: nothing in it is absolute.
	moved := dir + "-moved"
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	cfg, err := LoadConfig(filepath.Join(moved, ConfigFile))
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(file) != ConfigFile || cfg.KeysDir != filepath.Join(moved, "keys") || cfg.Socket() != filepath.Join(moved, "data", "admin.sock") {
		t.Errorf("configuration %+v", cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.idp == nil || s.journal == nil {
		t.Error("no provider, or no audit file")
	}
	for name, least := range map[string]time.Duration{keystore.Sign: 5 * 365 * 24 * time.Hour, keystore.Enc: 5 * 365 * 24 * time.Hour, keystore.TLS: 390 * 24 * time.Hour, keystore.List: 29 * 24 * time.Hour} {
		chain, err := s.keys.Chain(name)
		if err != nil || time.Until(chain[0].NotAfter) < least {
			t.Errorf("%s: until %v, %v", name, chain[0].NotAfter, err)
		}
	}
	if fi, err := os.Stat(cfg.PassphraseFile); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("passphrase file: %v, %v", fi.Mode(), err)
	}
}

func TestConfigFaultsNameTheirPath(t *testing.T) {
	var c Config
	c.AckWait, c.TokenLife, c.PasswordHash, c.IDP = time.Second, time.Second, "md5", &IDPConfig{Issuer: "http://x", Clients: []IDPClient{{}}}
	err := c.Validate()
	if err == nil {
		t.Fatal("no fault")
	}
	for _, path := range []string{"id:", "url:", "data_dir:", "passphrase_file:", "ack_wait:", "token_life:", "password_hash:", "idp.issuer:", "idp.clients[0]:"} {
		if !strings.Contains(err.Error(), path) {
			t.Errorf("%s is not named in: %v", path, err)
		}
	}
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("id: CTL00000001\nurll: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadConfig(file); err == nil || !strings.Contains(err.Error(), "urll") {
		t.Errorf("an unknown key: %v", err)
	}
}

func TestOwnCertificatesAreRenewedInTime(t *testing.T) {
	c := &movedClock{}
	w := newWorld(t, func(cfg *Config) { cfg.Now = c.Now })
	gw := w.enrol(NewDevice{Kind: "gateway"})
	serial := func(name string) string {
		chain, err := w.s.keys.Chain(name)
		if err != nil {
			t.Fatal(err)
		}
		return chain[0].SerialNumber.String()
	}
	before := map[string]string{keystore.TLS: serial(keystore.TLS), keystore.List: serial(keystore.List), keystore.Sign: serial(keystore.Sign)}
	if err := w.s.renewOwn(); err != nil || serial(keystore.TLS) != before[keystore.TLS] {
		t.Errorf("renewed too early: %v", err)
	}
	c.move(61 * 24 * time.Hour) // of 90 days
	if err := w.s.renewOwn(); err != nil {
		t.Fatal(err)
	}
	if serial(keystore.TLS) == before[keystore.TLS] || serial(keystore.List) == before[keystore.List] {
		t.Error("not renewed")
	}
	if serial(keystore.Sign) != before[keystore.Sign] {
		t.Error("a certificate that parties have pinned was changed")
	}
	gw.hc.CloseIdleConnections()
	gw.identify() // over the new certificate
	gw.pull("grants")
}

func TestGCR002_M40_AuditFileHasTheFiveFieldsAndNoSecrets(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Audit = nil })
	alice := w.user("alice")
	agent := w.enrol(NewDevice{Kind: "agent"})
	_, r := agent.login(alice, password)
	agent.login(alice, "wrong password 1")
	w.do("POST", "/v1/locks", NewLock{Kind: "user", ID: "alice"}, nil)
	w.stop()
	raw, err := os.ReadFile(filepath.Join(w.cfg.DataDir, "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[audit.Kind]int{}
	for line := range bytes.Lines(raw) {
		var rec audit.Record
		if err := json.Unmarshal(line, &rec); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		subject := rec.UserID + rec.DeviceID + rec.AgentID + rec.GatewayID + rec.UID
		if rec.Kind != audit.System && rec.Object != "enrol "+agent.id && subject == "" || rec.Object == "" || rec.Time.IsZero() || rec.Result == "" || rec.Remote == "" {
			t.Errorf("a field is missing: %s", line)
		}
		kinds[rec.Kind]++
	}
	if kinds[audit.Login] != 2 || kinds[audit.Admin] < 3 || kinds[audit.System] != 2 || kinds[audit.Interface] == 0 {
		t.Errorf("kinds %v", kinds)
	}
	for what, secret := range map[string]string{"password": password, "wrong password": "wrong password 1", "token": r.AuthToken} {
		if bytes.Contains(raw, []byte(secret)) {
			t.Errorf("the %s stands in the audit", what)
		}
	}
	db, err := os.ReadFile(filepath.Join(w.cfg.DataDir, "store.db"))
	if err != nil || bytes.Contains(db, []byte(r.AuthToken)) || bytes.Contains(db, []byte("argon2id")) {
		t.Errorf("a secret stands in the store in the clear (%v)", err)
	}
}

func TestGCR002_M66_AlertIsOnDiskWhenItIsAcknowledged(t *testing.T) {
	s := newSite(t)
	alert := map[string]any{"gatewayId": s.gw.id, "deviceId": s.gw.device, "timestamp": s.gw.now(), "exceptionAlertType": "3.001", "exceptionAlertLevel": 3, "exceptionAlertContent": "连接数异常 marker-1"}
	if status, body := s.gw.message("/alerts", "T11", alert); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	raw, err := os.ReadFile(filepath.Join(s.cfg.DataDir, "alerts.jsonl"))
	if err != nil || !bytes.Contains(raw, []byte("marker-1")) {
		t.Errorf("alerts file %q, %v", raw, err)
	}
}
