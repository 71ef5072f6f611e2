package apps

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/audit"
)

// Node's ws library on both sides: messages of all sizes, texts, pings, and the
// close code that the client chose reaches the application.
func TestWebSocketOfNode(t *testing.T) {
	w := site(t)
	u, cookies := w.user(t, "ws", nodeID, "node")
	env := []string{"NODE_EXTRA_CA_CERTS=" + w.CAFile}
	url := strings.Replace(w.URL("node", "/ws"), "https://", "wss://", 1)
	client := filepath.Join(w.dir, "client.js")

	out, err := peer(t, time.Minute, env, program(t, "node"), client, url, cookies)
	if err != nil || !strings.Contains(out, "ok\nclosed 4001") {
		t.Fatalf("%v: %s", err, out)
	}
	w.GatewayAudit.Await(t, 1, "the end of the WebSocket", func(r *audit.Record) bool {
		return r.Kind == audit.End && r.UserID == u.ID && r.Carrier == "websocket" && r.BytesIn > 9<<20 && r.BytesOut > 9<<20
	})

	out, err = peer(t, time.Minute, env, program(t, "node"), client, url, "no=cookie")
	if err == nil || !strings.Contains(out, "refused 401") {
		t.Errorf("a stranger: %v, %s, want 401", err, out)
	}
}

// The client of a user who is locked meanwhile is closed, and told why.
func TestWebSocketOfNodeIsCut(t *testing.T) {
	w := site(t)
	u, cookies := w.user(t, "wscut", nodeID, "node")
	url := strings.Replace(w.URL("node", "/ws"), "https://", "wss://", 1)
	cmd := exec.CommandContext(within(t, time.Minute), program(t, "node"), filepath.Join(w.dir, "client.js"), url, cookies, "stay")
	cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+w.CAFile)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ok" {
		t.Fatalf("got %q", lines.Text())
	}
	w.Lock(u, "see the security desk")
	start := time.Now()
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "closed 1008") {
		t.Errorf("got %q, want close code 1008 (policy violation)", lines.Text())
	}
	t.Logf("%s, %v after the lock was confirmed", lines.Text(), time.Since(start).Round(time.Millisecond))
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
