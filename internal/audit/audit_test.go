package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

// filled returns a record with a value in every field.
func filled(t *testing.T) *Record {
	t.Helper()
	var r Record
	v := reflect.ValueOf(&r).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString(fmt.Sprintf("value %d", i))
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Int64:
			f.SetInt(int64(i) << 40)
		case reflect.Uint16:
			f.SetUint(uint64(reason.GrantRevoked))
		}
	}
	r.Time = time.Date(2026, 11, 21, 1, 2, 3, 456789, time.UTC)
	return &r
}

func TestLineIsWhatTheTagsSay(t *testing.T) {
	for name, r := range map[string]*Record{"every field": filled(t), "no field": {Time: time.Unix(0, 0).UTC()}} {
		want, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if got := appendLine(nil, r); string(got) != string(want)+"\n" {
			t.Errorf("%s:\ngot  %swant %s", name, got, want)
		}
	}
}

func TestTextsNamesEveryText(t *testing.T) {
	r := filled(t)
	for _, s := range r.texts() {
		*s = ""
	}
	v := reflect.ValueOf(r).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.String && f.String() != "" && v.Type().Field(i).Name != "Kind" {
			t.Errorf("texts leaves out %s", v.Type().Field(i).Name)
		}
	}
}

// hostile are texts that must not reach a log line or a terminal as they are.
var hostile = map[string]string{
	"line breaks":    "a\r\nb",
	"escape":         "\x1b[31mred\x1b]0;title\a",
	"NUL":            "a\x00b",
	"C1":             "a\u009bb",
	"quote":          `a","allowed":true,"x":"`,
	"backslash":      `a\`,
	"right to left":  "gpj\u202eexe.\u2066x\u2069",
	"zero width":     "pay\u200bpal\ufeff",
	"line separator": "a\u2028b\u2029",
	"tags":           "a\U000E0041b",
	"no UTF-8":       "a\xff\xfe\xc3(b",
	"DEL":            "a\x7fb",
}

func TestS33_HostileTextIsEscapedOnOneLine(t *testing.T) {
	bad := func(s string) (out []rune) {
		for _, r := range s {
			if unsafeRune(r) {
				out = append(out, r)
			}
		}
		return out
	}
	for name, s := range hostile {
		line := appendLine(nil, &Record{Path: s, Remote: s})
		if got := bad(strings.TrimSuffix(string(line), "\n")); len(got) > 0 || bytes.Count(line, []byte("\n")) != 1 {
			t.Errorf("%s: the line has %q: %q", name, got, line)
		}
		var back Record
		if err := json.Unmarshal(line, &back); err != nil {
			t.Errorf("%s: %v in %q", name, err, line)
		}
		if utf8.ValidString(s) && back.Path != s {
			t.Errorf("%s: read back as %q, want %q", name, back.Path, s)
		}
		if back.Allowed {
			t.Errorf("%s: a text changed another field", name)
		}
		if got := Clean(s, MaxField); len(bad(got)) > 0 || !utf8.ValidString(got) {
			t.Errorf("%s: Clean gives %q", name, got)
		}
	}
	if s := "计划 plan é 🚪"; Clean(s, 100) != s {
		t.Errorf("Clean changed %q to %q", s, Clean(s, 100))
	}
}

func TestS33_LongTextIsCapped(t *testing.T) {
	long := strings.Repeat("é", 1<<19)
	var back Record
	line := appendLine(nil, &Record{Path: long})
	if err := json.Unmarshal(line, &back); err != nil || len(back.Path) > MaxField || len(back.Path) < MaxField-20 || !strings.HasSuffix(back.Path, cutMark) {
		t.Errorf("line of %d bytes, path of %d: %v", len(line), len(back.Path), err)
	}
	for _, max := range []int{0, 3, 9, 20, 21} {
		for _, s := range []string{long, strings.Repeat("\x1b", 50), strings.Repeat("a", 22), "\u202e"} {
			if got := Clean(s, max); len(got) > max || !utf8.ValidString(got) {
				t.Errorf("Clean(%.10q, %d) = %q of %d bytes", s, max, got, len(got))
			}
		}
	}
}

func FuzzTextIsAlwaysOneSafeString(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var back string
		b := appendText(nil, s)
		if err := json.Unmarshal(b, &back); err != nil || len(back) > 3*MaxField {
			t.Fatalf("%q: %v", b, err)
		}
		if len(s) <= MaxField && utf8.ValidString(s) && back != s {
			t.Errorf("%q came back as %q", s, back)
		}
		if got := Clean(s, 64); len(got) > 64 || !utf8.ValidString(got) || strings.ContainsFunc(got, unsafeRune) {
			t.Errorf("Clean(%q) = %q", s, got)
		}
	})
}

func readLines(t *testing.T, path string) (lines []map[string]any) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for l := range bytes.Lines(raw) {
		var m map[string]any
		if err := json.Unmarshal(l, &m); err != nil {
			t.Fatalf("%s: line %q: %v", path, l, err)
		}
		lines = append(lines, m)
	}
	return lines
}

func TestGCR002_M143_EveryRecordIsWrittenAndRotated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// A file larger than all keeps everything: the count is exact.
	f, err := OpenFile(FileConfig{Path: path, MaxBytes: 20 << 10, Keep: 1000, Queue: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	const writers, each = 8, 500
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			r := &Record{Kind: Decision, Remote: "192.0.2.1"}
			for i := range each {
				r.RequestID = fmt.Sprintf("%d-%d", w, i) // the sink copies what it keeps
				f.Write(r)
			}
		})
	}
	all.Wait()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	old, err := Rotated(path)
	if err != nil {
		t.Fatal(err)
	}
	next := map[string]int{}
	total := 0
	for _, p := range append(old, path) {
		st, err := os.Stat(p)
		if err != nil || st.Mode().Perm() != 0o600 || st.Size() > batchBytes+20<<10 {
			t.Errorf("%s: %v, %v", p, st, err)
		}
		for _, l := range readLines(t, p) {
			total++
			w, i, _ := strings.Cut(l["request_id"].(string), "-")
			if i != fmt.Sprint(next[w]) {
				t.Fatalf("writer %s: record %s, want %d: the order is lost", w, i, next[w])
			}
			next[w]++
		}
	}
	if s := f.Stats(); total != writers*each || s.Written != writers*each || s.Dropped != 0 || s.Rotations == 0 || int(s.Rotations) != len(old) {
		t.Errorf("%d lines in %d files, stats %+v", total, len(old)+1, s)
	}
	f.Write(&Record{})
	if s := f.Stats(); s.Dropped != 1 {
		t.Errorf("a record after Close: %+v", s)
	}
}

func TestOnlySoManyFilesAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		f, err := OpenFile(FileConfig{Path: path, MaxBytes: 1, Keep: 3, Now: func() time.Time { now = now.Add(time.Second); return now }, Sync: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			f.Write(&Record{RequestID: fmt.Sprint(i)})
			time.Sleep(gatherFor)
			synctest.Wait() // one batch each, so that each rotates
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		old, _ := Rotated(path)
		if len(old) != 3 || readLines(t, old[0])[0]["request_id"] != "6" || readLines(t, path)[0]["request_id"] != "9" {
			t.Errorf("kept %v, want the records 6 to 9", old)
		}
	})
}

// What the queue cannot take is counted, named by a gap record and alerted.
func TestDropsAreCountedNamedAndAlerted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	var mu sync.Mutex
	var got []alert.Alert
	hold, held := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f, err := OpenFile(FileConfig{
		Path: path, Queue: 4, MaxBytes: 1, Sync: time.Millisecond,
		Alerts: alert.Func(func(a alert.Alert) { mu.Lock(); got = append(got, a); mu.Unlock() }),
		Now:    func() time.Time { once.Do(func() { close(held); <-hold }); return time.Now() },
	})
	if err != nil {
		t.Fatal(err)
	}
	<-held // the writer stands still, as on a dead disk
	n := 100 + rand.IntN(100)
	start := time.Now()
	for i := range n {
		f.Write(&Record{RequestID: fmt.Sprint(i)})
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("%d writes took %v: Write waits for the disk", n, d)
	}
	close(hold)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s := f.Stats()
	old, _ := Rotated(path)
	lines, named := 0, 0
	for _, p := range append(old, path) {
		for _, l := range readLines(t, p) {
			if l["object"] == "audit gap" {
				var k int
				fmt.Sscanf(l["detail"].(string), "%d records dropped", &k)
				named += k
			} else {
				lines++
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if lines+named != n || uint64(named) != s.Dropped || named == 0 || len(got) == 0 || got[0].Code != alert.AuditDropped {
		t.Errorf("%d written and %d named of %d; stats %+v; alerts %v", lines, named, n, s, got)
	}
}

func TestADiskThatRefusesDropsAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "sub", "audit.jsonl")
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := OpenFile(FileConfig{Path: path, MaxBytes: 1, Sync: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		wait := func(ok func(FileStats) bool) {
			t.Helper()
			time.Sleep(gatherFor)
			if synctest.Wait(); !ok(f.Stats()) {
				t.Fatalf("stats %+v", f.Stats())
			}
		}
		f.Write(&Record{RequestID: "first"})
		wait(func(s FileStats) bool { return s.Written == 1 })
		if err := os.Rename(filepath.Dir(path), filepath.Join(dir, "away")); err != nil {
			t.Fatal(err)
		}
		f.Write(&Record{RequestID: "lost"}) // must rotate, and cannot
		wait(func(s FileStats) bool { return s.Dropped == 1 && s.Errors == 1 })
		if err := os.Rename(filepath.Join(dir, "away"), filepath.Dir(path)); err != nil {
			t.Fatal(err)
		}
		f.Write(&Record{RequestID: "second"})
		wait(func(s FileStats) bool { return s.Written == 2 })
		if err := f.Close(); err == nil {
			t.Error("Close says nothing of the lost record")
		}
		raw := ""
		old, _ := Rotated(path)
		for _, p := range append(old, path) {
			b, _ := os.ReadFile(p)
			raw += string(b)
		}
		for _, want := range []string{"first", "second", "1 records dropped"} {
			if !strings.Contains(raw, want) {
				t.Errorf("no %q in %q", want, raw)
			}
		}
	})
}

func TestRingKeepsTheNewest(t *testing.T) {
	r := NewRing(3)
	for i := range 5 {
		r.Write(&Record{RequestID: fmt.Sprint(i), Path: "a\nb"})
	}
	got := r.Last(2)
	if len(got) != 2 || got[0].RequestID != "3" || got[1].RequestID != "4" || got[1].Path != `a\nb` || r.Total() != 5 || len(r.Last(10)) != 3 {
		t.Errorf("got %+v, total %d", got, r.Total())
	}
}

func BenchmarkWrite(b *testing.B) {
	f, err := OpenFile(FileConfig{Path: filepath.Join(b.TempDir(), "audit.jsonl"), Queue: 1 << 16})
	if err != nil {
		b.Fatal(err)
	}
	r := &Record{Time: time.Now(), Kind: Decision, GatewayID: "GW000000001", UserID: "USR00000001", DeviceID: "DEV00000001", SessionID: "s", AppID: "APP00000001", Carrier: "h1", Method: "GET", Path: "/a/b/c", Protocol: "tls1.3", Suite: "TLS_AES_128_GCM_SHA256", Remote: "192.0.2.1:4711", Allowed: true, Result: "ok"}
	b.ReportAllocs()
	for b.Loop() {
		f.Write(r)
	}
	f.Close()
	b.ReportMetric(float64(f.Stats().Dropped)/float64(b.N), "dropped/op")
}
