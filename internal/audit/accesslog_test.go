package audit

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

func accessLines(t *testing.T, path string) []map[string]any {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []map[string]any
	for line := range strings.Lines(string(b)) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out = append(out, m)
	}
	return out
}

func TestS33_AccessLogIsOneLineARequest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.jsonl")
	l, err := OpenAccessLog(AccessLogConfig{File: path, Sample: 10}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	good := Access{Time: time.Unix(1_800_000_000, 0), RequestID: "r", AppID: "APP00000001", UserID: "USR00000001", Remote: "192.0.2.1:1", Method: "GET",
		Host: "a.test", Path: "/x", Carrier: "h2", Status: 200, BytesOut: 5, Duration: 1500 * time.Microsecond, UserAgent: "evil\r\n{\"x\":\x1b[1m 玉门 " + strings.Repeat("x", 1<<20)}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 250 {
				l.Write(&good)
			}
		})
	}
	all.Wait()
	bad := good
	bad.Status, bad.Code = 403, reason.AppNotGranted
	l.Write(&bad)
	bad.Status, bad.Code = 502, reason.OK
	l.Write(&bad)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.Write(&good)
	for range 9 { // one of ten is not left out
		l.Write(&good)
	}
	got := accessLines(t, path)
	written, dropped := l.Stats()
	if len(got) != 102 || written != 102 || dropped != 1 {
		t.Errorf("%d lines, %d written, %d dropped; want 100 of 1000, a refusal and a 502, and one after the end dropped", len(got), written, dropped)
	}
	first, refusal := got[0], got[100]
	if first["duration_us"] != 1500.0 || first["status"] != 200.0 || first["reason"] != nil || refusal["reason"] != "app_not_granted" || len(first["user_agent"].(string)) > 8192 {
		t.Errorf("%.300v\n%.300v", first, refusal)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

func TestAccessLogIsReopenedAndBounded(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "access.jsonl")
	l, err := OpenAccessLog(AccessLogConfig{File: path, MaxBytes: 4 << 10, Keep: 2}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	a := Access{Time: time.Unix(1_800_000_000, 0), RequestID: "r", Status: 200, Path: "/" + strings.Repeat("x", 500)}
	wrote := func(n uint64) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if got, _ := l.Stats(); got >= n {
				return
			} else if time.Now().After(end) {
				t.Fatalf("%d written, want %d", got, n)
			}
		}
	}
	l.Write(&a)
	wrote(1)
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	l.Reopen()
	l.Write(&a)
	wrote(2)
	if n := len(accessLines(t, path)); n != 1 {
		t.Errorf("%d lines in the new file", n)
	}
	for n := uint64(3); n <= 7; n++ {
		for range 7 {
			l.Write(&a)
		}
		wrote(2 + 7*(n-2))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	old, err := Rotated(path)
	if err != nil || len(old) != 2 {
		t.Errorf("%d files set aside, %v, want 2", len(old), err)
	}
}

func BenchmarkAccessLog(b *testing.B) {
	l, err := OpenAccessLog(AccessLogConfig{File: filepath.Join(b.TempDir(), "access.jsonl"), MaxBytes: 1 << 40}, time.Now)
	if err != nil {
		b.Fatal(err)
	}
	a := Access{Time: time.Now(), RequestID: "0123456789abcdef01234567", AppID: "APP00000001", UserID: "USR00000001", Remote: "192.0.2.1:40000", Method: "GET",
		Host: "app.example.com", Path: "/api/v1/things", Carrier: "h1", Status: 200, BytesOut: 1024, Duration: time.Millisecond, UserAgent: "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"}
	for b.Loop() {
		l.Write(&a)
	}
	l.Close()
	_, dropped := l.Stats()
	b.ReportMetric(float64(dropped)/float64(b.N), "dropped/op")
}
