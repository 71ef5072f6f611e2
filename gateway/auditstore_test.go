package gateway

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/internal/audit"
)

// The owner reads, proves and exports; nobody deletes unless it is configured;
// who may export need not be who may read, and each use and refusal is a
// record.
func TestGCR002_M41_RightsOnTheAuditStore(t *testing.T) {
	me := strconv.Itoa(os.Geteuid())
	w := newWorld(t)
	w.config(twoApps)
	w.start()
	w.want(w.client(w.alice()), "https://one.test/", 200, user)
	copied := func(socket, path string) (string, error) {
		var b bytes.Buffer
		err := adminsock.NewClient(socket).Copy(context.Background(), path, &b)
		return b.String(), err
	}
	admin := filepath.Join(w.dir, "state", "admin.sock")
	w.audited(`"kind":"end"`)
	for _, path := range []string{"/audit?last=10", "/audit/export?since=2020-01-01T00:00:00Z"} {
		if text, err := copied(admin, path); err != nil || !strings.Contains(text, `"end"`) {
			t.Errorf("%s: %q, %v", path, text, err)
		}
	}
	var p audit.StoreProof
	must(t, w.admin("GET", "/audit/verify", nil, &p))
	if !p.Whole || p.Records < 2 || p.Segments != 1 {
		t.Errorf("%+v", p)
	}
	if err := w.admin("POST", "/audit/delete?before=2020-01-01T00:00:00Z", nil, nil); err == nil || !strings.Contains(err.Error(), "no right") {
		t.Errorf("the owner deletes: %v", err)
	}
	must(t, w.stop())
	text := w.auditText()
	for _, want := range []string{`"object":"audit show"`, `"object":"audit export"`, `"object":"audit verify"`, `"object":"audit delete","remote_addr":"unix","allowed":false,"result":"no_right"`, `"uid":"` + me + `"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the audit lacks %s", want)
		}
	}

	// Rights apart: we export and delete, another reads.
	other := "65534"
	w.config(twoApps + fmt.Sprintf("audit: {rights: {socket: auditors.sock, read: ['%s'], export: ['%s'], delete: ['%s']}}\n", other, me, me))
	w.start()
	if _, err := copied(admin, "/audit"); err == nil || !strings.Contains(err.Error(), "no right") {
		t.Errorf("who may only export reads: %v", err)
	}
	if text, err := copied(filepath.Join(w.dir, "auditors.sock"), "/audit/export"); err != nil || !strings.Contains(text, `"start"`) {
		t.Errorf("export: %q, %v", text, err)
	}
	var d AuditDeleted
	must(t, w.admin("POST", "/audit/delete?before="+time.Now().Add(time.Minute).UTC().Format(time.RFC3339), nil, &d))
	if d.Segments != 1 { // that of the first start; ours is being written
		t.Errorf("%d segments deleted", d.Segments)
	}
	if os.Geteuid() == 0 {
		asNobody(t, filepath.Join(w.dir, "auditors.sock"))
	}
	must(t, w.stop())
	if text := w.auditText(); !strings.Contains(text, "asked for all before") || strings.Contains(text, `"object":"audit export","remote_addr":"unix","allowed":false`) != (os.Geteuid() == 0) {
		t.Errorf("the audit of the second run: %s", text)
	}
}

// asNobody asks as the user 65534, from a process of its own: it reads, and may
// not export.
func asNobody(t *testing.T, socket string) {
	t.Helper()
	must(t, os.Chmod(filepath.Dir(socket), 0o711))
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{"gateway.test", "-test.run=^TestAskAsNobody$"}, &os.ProcAttr{
		Dir: "/", Env: append(os.Environ(), "YUMEN_AUDIT_SOCKET="+socket), Files: []*os.File{nil, w, w},
		Sys: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}},
	})
	w.Close()
	if err != nil {
		t.Skipf("SKIPPED, NOT PASSED: no process of another user can be started: %v", err)
	}
	var out bytes.Buffer
	_, _ = out.ReadFrom(r)
	state, err := p.Wait()
	if err != nil || !state.Success() {
		t.Errorf("as another user: %v %v: %s", state, err, out.String())
	}
}

// TestAskAsNobody is what [asNobody] runs.
func TestAskAsNobody(t *testing.T) {
	socket := os.Getenv("YUMEN_AUDIT_SOCKET")
	if socket == "" {
		t.Skip("runs in a process of another user only")
	}
	c := adminsock.NewClient(socket)
	var b bytes.Buffer
	if err := c.Copy(t.Context(), "/audit?last=3", &b); err != nil || strings.Count(b.String(), "\n") != 3 {
		t.Errorf("who may read can not: %q, %v", b.String(), err)
	}
	if err := c.Copy(t.Context(), "/audit/export", &b); err == nil || !strings.Contains(err.Error(), "no right") {
		t.Errorf("who may only read exports: %v", err)
	}
}
