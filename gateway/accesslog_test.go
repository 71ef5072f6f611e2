package gateway

import (
	"strings"
	"testing"
)

func TestAccessLogHasEveryRequest(t *testing.T) {
	w := newWorld(t)
	w.config(twoApps + "access_log: {file: access.jsonl}\n")
	w.start()
	alice := w.client(w.alice())
	w.want(alice, "https://one.test/a?secret=1", 200, "one.test for "+user)
	w.want(alice, "https://two.test/b", 403, "YM-303")
	must(t, w.stop())
	lines := strings.Split(strings.TrimSpace(w.read("access.jsonl")), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `"app_id":"APP00000001","user_id":"`+user) || !strings.Contains(lines[0], `"path":"/a"`) || !strings.Contains(lines[0], `"status":200`) ||
		!strings.Contains(lines[1], `"status":403,"reason":"app_not_granted"`) || strings.Contains(lines[0], "secret") {
		t.Errorf("%s", strings.Join(lines, "\n"))
	}
}
