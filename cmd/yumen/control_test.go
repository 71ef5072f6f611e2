package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/control"
)

// verb runs one command line and returns what it printed.
func verb(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	root := rootCmd()
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	return out.String(), err
}

func TestControlVerbs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	ctx, cancel := context.WithCancel(t.Context())
	if out, err := verb(ctx, "control", "init", "--dir", dir, "--url", "https://127.0.0.1:1"); err != nil || !strings.Contains(out, "control run -c") {
		t.Fatalf("init: %v %s", err, out)
	}
	file := filepath.Join(dir, control.ConfigFile)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// A free port, and a short socket path whatever the test's folder is.
	socketDir, err := os.MkdirTemp("", "yumen")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(socketDir) })
	raw = bytes.Replace(raw, []byte(`[":1"]`), []byte(`["127.0.0.1:0", "[::1]:0"]`), 1)
	raw = append(raw, "admin_socket: "+filepath.Join(socketDir, "a.sock")+"\n"...)
	password := filepath.Join(dir, "password")
	for name, text := range map[string][]byte{file: raw, password: []byte("correct horse 1\n")} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := verb(ctx, "control", "run", "-c", file, "--print-config"); err != nil || !strings.Contains(out, "token_life: 10m") {
		t.Errorf("--print-config: %v %s", err, out)
	}
	done := make(chan error, 1)
	go func() {
		_, err := verb(ctx, "control", "run", "-c", file)
		done <- err
	}()
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) { // until the socket is there: another process's state
		if _, err := os.Stat(filepath.Join(socketDir, "a.sock")); err == nil {
			break
		} else if time.Since(start) > 30*time.Second {
			t.Fatal("the control center does not start")
		}
	}
	t.Setenv("YUMEN_CONTROL_CONFIG", file)
	for _, step := range []struct {
		args string
		want string // in the output, or in the error after "!"
	}{
		{"user add alice --password-file " + password, "USR00000001 added"},
		{"user list", "alice"},
		{"app add wiki --address 10.0.0.5:443", "APP00000001 added"},
		{"app list -o json", `"name": "wiki"`},
		{"grant add alice APP00000001 --until 8h", "GRT00000001 granted"},
		{"grant add alice APP00000009", "!app list"},
		{"grant add alice APP00000001 --until tomorrow", "!write 8h"},
		{"grant list", "USR00000001"},
		{"device add gateway --address gw.test:443", "yumen enroll yumen1."},
		{"device add agent --user alice", "AGT00000001"},
		{"device list", "code until"},
		{"device address GW000000001 gw2.test:443,[::1]:8443", "dialed at gw2.test:443, [::1]:8443"},
		{"device list", "gw2.test:443,[::1]:8443"},
		{"device address GW000000001 gw2.test", "!host:port"},
		{"device address AGT00000001 gw2.test:443", "!nobody dials it"},
		{"device facts AGT00000001 --posture 90", "new facts"},
		{"policy add ipallow 10.0.0.0/8 --name office", "POL00000001 in force"},
		{"policy add magic 1", "!types:"},
		{"policy list", "10.0.0.0/8  everything  office"},
		{"policy add authage 15m --scope alice/APP00000001", "POL00000002 in force"},
		{"policy add authage 15m --scope APP00000009", "!app list"},
		{"policy list", "15m                                  USR00000001/APP00000001"},
		{"policy remove POL00000002", "removed"},
		{"policy remove BND00000001", "!policy list"},
		{"lock --user alice --message stop --wait", "no gateway is connected"},
		{"locks", "stop"},
		{"unlock --user alice", "unlocked"},
		{"unlock --user alice", "!control locks"},
		{"sessions", "TOKEN-UNTIL"},
		{"subject add https://idp.test a@b alice", "mapped"},
		{"subject list", "a@b"},
		{"status", "GW000000001"},
		{"user passwd alice --password-file " + password, "new password"},
		{"policy remove POL00000001", "removed"},
		{"grant remove GRT00000001", "removed"},
		{"device remove AGT00000001", "removed"},
		{"user remove alice", "removed"},
	} {
		out, err := verb(ctx, append([]string{"control"}, strings.Fields(step.args)...)...)
		want, fails := strings.CutPrefix(step.want, "!")
		switch {
		case fails && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want an error that says %q", step.args, err, want)
		case !fails && (err != nil || !strings.Contains(out, want)):
			t.Errorf("%s: %v %s, want %q", step.args, err, out, want)
		}
	}
	out, err := verb(ctx, "control", "status", "-o", "json")
	var s control.Status
	if err != nil || json.Unmarshal([]byte(out), &s) != nil || s.ID != "CTL00000001" || s.Users != 0 || s.Devices != 1 {
		t.Errorf("status: %v %s", err, out)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	if _, err := verb(context.Background(), "control", "status"); err == nil || !strings.Contains(err.Error(), "is the role running") {
		t.Errorf("after the end: %v", err)
	}
}
