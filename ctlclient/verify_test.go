package ctlclient

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

func pointer(n int) *int { return &n }

func TestGCR002_M54_ListWithFactsIsReadWhole(t *testing.T) {
	w := newWorld(t)
	raw := w.make(listSpec{
		name: wire.GrantsList, version: 7,
		pages: [][]string{{grantRow(1, "APP00000001"), grantRow(2)}, {grantRow(3, "APP00000001", "APP00000002")}},
		facts: [][]wire.RowFacts{{{I: 1, Level: 2, Factors: []int{1, 4}, AuthTime: "2026-01-02T03:04:05Z", Posture: pointer(0), Risk: pointer(10)}}},
	})
	g, err := w.verifier(nil).Grants(bytes.NewReader(raw), Floor{Version: 7})
	must(t, err)
	if g.Version != 7 || len(g.Rows) != 3 || len(g.Faults) != 0 || time.Until(g.NotAfter) < 58*time.Minute {
		t.Fatalf("got version %d, %d rows, faults %v, until %v", g.Version, len(g.Rows), g.Faults, g.NotAfter)
	}
	r := g.Rows[1]
	want := GrantRow{Grant: r.Grant, Level: 2, Factors: []int{1, 4}, AuthTime: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Posture: pointer(0), Risk: pointer(10), Sum: r.Sum}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("facts: got %+v, want %+v", r, want)
	}
	if g.Rows[0].Posture != nil || g.Rows[0].Level != 0 {
		t.Errorf("row without facts: got %+v", g.Rows[0])
	}
	if got := g.Rows[2].AppIDList; len(got) != 2 || g.Rows[0].UserID != "USR00000001" {
		t.Errorf("rows: got %+v", g.Rows)
	}
}

// Each of these lists is refused whole, with the reason that names it.
func TestS4_S5_ListsThatAreRefusedWhole(t *testing.T) {
	w := newWorld(t)
	other := w.party("other", certid.Identity{Gateway: "GW000000002", Device: "DEV00000009"})
	foreignCA, err := lab.New(lab.Config{Iterations: 1000})
	must(t, err)
	foreign, err := foreignCA.Party(filepath.Join(t.TempDir(), "foreign"), pass, certid.Identity{Control: ctlID}, nil)
	must(t, err)
	second := w.party("second", certid.Identity{Control: "CTL00000002"})

	good := listSpec{name: wire.GrantsList, version: 5, pages: [][]string{{grantRow(1, "APP00000001")}, {grantRow(2, "APP00000001")}}}
	with := func(f func(*listSpec)) []byte { s := good; f(&s); return w.make(s) }
	raw := w.make(good)
	lines := bytes.SplitAfter(raw, []byte("\n"))
	join := func(l ...[]byte) []byte { return bytes.Join(l, nil) }
	ok, err := w.verifier(nil).read(bytes.NewReader(raw), wire.GrantsList, Floor{}, arriving(time.Now))
	must(t, err)

	tests := []struct {
		name  string
		raw   []byte
		floor Floor
		want  reason.Reason
	}{
		{"older", raw, Floor{Version: 6}, reason.ListOlder},
		{"same version, other content", with(func(s *listSpec) { s.pages = [][]string{{grantRow(1, "APP00000002")}} }), Floor{5, ok.digest}, reason.ListOlder},
		{"for another gateway", with(func(s *listSpec) { s.receiver = "GW000000002"; s.to = leaf(t, other, keystore.Enc) }), Floor{}, reason.ListOtherReceiver},
		{"page for another device", with(func(s *listSpec) { s.device = "DEV00000009" }), Floor{}, reason.ListOtherReceiver},
		{"manifest for another gateway inside", with(func(s *listSpec) { s.manifest = func(m *wire.Manifest) { m.Receiver = "GW000000002" } }), Floor{}, reason.ListOtherReceiver},
		{"signed under another root", with(func(s *listSpec) { s.control = foreign }), Floor{}, reason.ListSigner},
		{"signed by the message key", with(func(s *listSpec) { s.key = keystore.Sign }), Floor{}, reason.ListSigner},
		{"signed by another control center", with(func(s *listSpec) { s.control, s.sender = second, "CTL00000002" }), Floor{}, reason.ListSigner},
		{"life over", with(func(s *listSpec) { s.life = -time.Second }), Floor{}, reason.ListExpired},
		{"page not sealed", with(func(s *listSpec) { s.plain = true }), Floor{}, reason.MessageAlgorithm},
		{"the other list", with(func(s *listSpec) { s.name = wire.PoliciesList; s.pages = nil }), Floor{}, reason.MessageInvalid},
		{"fewer rows than the manifest says", with(func(s *listSpec) { s.manifest = func(m *wire.Manifest) { m.Rows++ } }), Floor{}, reason.ListIncomplete},
		{"more rows than the manifest says", with(func(s *listSpec) { s.manifest = func(m *wire.Manifest) { m.Rows-- } }), Floor{}, reason.ListIncomplete},
		{"wrong length", with(func(s *listSpec) { s.manifest = func(m *wire.Manifest) { m.Pages[1].Bytes-- } }), Floor{}, reason.ListIncomplete},
		{"version 0", with(func(s *listSpec) { s.version = 0 }), Floor{}, reason.MessageInvalid},
		{"duplicate keys", bytes.Replace(raw, []byte(`"body":{`), []byte(`"body":{"version":"9",`), 1), Floor{}, reason.MessageMalformed},
		{"last page missing", join(lines[0], lines[1]), Floor{}, reason.ListIncomplete},
		{"no page", lines[0], Floor{}, reason.ListIncomplete},
		{"nothing", nil, Floor{}, reason.ListIncomplete},
		{"cut in a page", raw[:len(raw)-100], Floor{}, reason.ListIncomplete},
		{"pages swapped", join(lines[0], lines[2], lines[1]), Floor{}, reason.ListIncomplete},
		{"page of another list", join(lines[0], lines[1], bytes.SplitAfter(w.make(good), []byte("\n"))[2]), Floor{}, reason.ListIncomplete},
		{"something behind", append(bytes.Clone(raw), "{}\n"...), Floor{}, reason.ListIncomplete},
		{"a page without a manifest", join(lines[1], lines[2]), Floor{}, reason.MessageInvalid},
		{"no envelope", []byte("<html>\n"), Floor{}, reason.MessageMalformed},
		{"a line of 2 MiB", bytes.Repeat([]byte("a"), 2<<20), Floor{}, reason.MessageTooLarge},
		{"altered manifest", bytes.Replace(raw, []byte(`"version":"5"`), []byte(`"version":"6"`), 1), Floor{}, reason.MessageSignature},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g, err := w.verifier(nil).Grants(bytes.NewReader(tt.raw), tt.floor)
			var le *ListError
			if !errors.As(err, &le) {
				t.Fatalf("got %v, %v, want a ListError", g, err)
			}
			if g != nil || le.Reason != tt.want || le.List != wire.GrantsList {
				t.Errorf("got %v (list %q), want %v; error %v", le.Reason, le.List, tt.want, err)
			}
		})
	}

	t.Run("limit of the whole", func(t *testing.T) {
		v := w.verifier(func(c *VerifierConfig) { c.MaxBytes = int64(len(raw)) - 1 })
		_, err := v.Grants(bytes.NewReader(raw), Floor{})
		var le *ListError
		if !errors.As(err, &le) || le.Reason != reason.MessageTooLarge {
			t.Errorf("got %v, want %v", err, reason.MessageTooLarge)
		}
	})
	t.Run("every single byte counts", func(t *testing.T) {
		for i := 0; i < len(raw)-1; i += 37 { // the last byte is the line feed
			bad := bytes.Clone(raw)
			bad[i] ^= 1
			if g, err := w.verifier(nil).Grants(bytes.NewReader(bad), Floor{Version: 5}); err == nil {
				t.Errorf("byte %d changed: taken with %d rows", i, len(g.Rows))
			}
		}
	})
}

func TestS4_TheSameContentInOtherPagesIsTaken(t *testing.T) {
	w := newWorld(t)
	a, b := grantRow(1, "APP00000001"), grantRow(2)
	one, err := w.verifier(nil).read(bytes.NewReader(w.grants(5, a, b)), wire.GrantsList, Floor{}, arriving(time.Now))
	must(t, err)
	again := w.make(listSpec{name: wire.GrantsList, version: 5, life: 2 * time.Hour, pages: [][]string{{b}, {a}}})
	g, err := w.verifier(nil).Grants(bytes.NewReader(again), Floor{5, one.digest})
	if err != nil || len(g.Rows) != 2 || time.Until(g.NotAfter) < 90*time.Minute {
		t.Errorf("got %v, %v, want the list with its new life", g, err)
	}
}

func TestGCR002_OneBadRowIsOnlyThatRow(t *testing.T) {
	w := newWorld(t)
	bad := strings.Replace(grantRow(2, "APP00000001"), "2099-01-01T00:00:00Z", "tomorrow", 1)
	g, err := w.verifier(nil).Grants(bytes.NewReader(w.make(listSpec{
		name: wire.GrantsList, version: 1, pages: [][]string{{grantRow(1)}, {grantRow(9), bad, grantRow(3), grantRow(4)}},
		facts: [][]wire.RowFacts{nil, {{I: 2, Level: 3}, {I: 3, Posture: pointer(101)}}},
	})), Floor{})
	must(t, err)
	if len(g.Rows) != 3 || g.Rows[2].UserID != "USR00000003" || g.Rows[2].Level != 3 {
		t.Errorf("rows: got %+v, want 1, 9 and 3, the last with its own facts", g.Rows)
	}
	var at []int
	for _, f := range g.Faults {
		at = append(at, f.Row)
		if f.Err == nil {
			t.Errorf("row %d: no error", f.Row)
		}
	}
	if fmt.Sprint(at) != "[4 2]" {
		t.Errorf("faults in rows %v, want 4 (posture 101) and 2 (date)", at)
	}

	p, err := w.verifier(nil).Policies(bytes.NewReader(w.policies(1, nil, policyRow(1, "level", "2"), policyRow(2, "level", strings.Repeat("x", 41)))), Floor{})
	must(t, err)
	if len(p.Rows) != 1 || len(p.BadRows) != 1 || p.BadRows[0].PolicyID != "POL00000002" || len(p.Faults) != 1 {
		t.Errorf("policies: got %+v, want one row and one bad one that names POL00000002", p)
	}
}

func TestDeltaWithABadRowLeavesNothingInItsPlace(t *testing.T) {
	w := newWorld(t)
	bad := strings.Replace(grantRow(2), "2099-01-01T00:00:00Z", "never", 1)
	body := fmt.Sprintf(`{"from":"1","to":"2","timestamp":"2026-01-01T00:00:00Z","remove":[{"userId":"USR00000009","deviceId":"DEV00000009"}],"grants":[%s,%s],"ext":[{"i":1,"level":2}]}`, bad, grantRow(3))
	d, err := w.verifier(nil).Delta(w.rawDelta([]byte(body)))
	must(t, err)
	want := []wire.PairRef{{UserID: "USR00000009", DeviceID: "DEV00000009"}, {UserID: "USR00000002", DeviceID: "DEV00000002"}}
	if !reflect.DeepEqual(d.Remove, want) || len(d.Rows) != 1 || d.Rows[0].Level != 2 || d.unclear || len(d.Faults) != 1 {
		t.Errorf("got %+v", d)
	}
	d, err = w.verifier(nil).Delta(w.rawDelta([]byte(strings.Replace(body, `"userId":"USR00000002"`, `"userId":7`, 1))))
	must(t, err)
	if !d.unclear || len(d.Remove) != 1 {
		t.Errorf("a row that names nobody: got unclear %v, remove %v", d.unclear, d.Remove)
	}
	for _, bad := range []string{`{"from":"2","to":"1","timestamp":"2026-01-01T00:00:00Z"}`, `{"from":"1","to":"2"}`} {
		if _, err := w.verifier(nil).Delta(w.rawDelta([]byte(bad))); err == nil {
			t.Errorf("taken: %s", bad)
		}
	}
}

func FuzzVerifierNeverPanicsAndInventsNothing(f *testing.F) {
	w := newWorld(f)
	f.Add([]byte("{}\n"))
	good := w.grants(3, grantRow(1))
	f.Add(good)
	f.Add(w.policies(3, nil, policyRow(1, "level", "2")))
	v := w.verifier(nil)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if g, err := v.Grants(bytes.NewReader(raw), Floor{Version: 4}); err == nil {
			t.Errorf("version %d taken below the floor", g.Version)
		}
		if _, err := v.Delta(raw); err == nil {
			t.Error("a delta that nobody signed was taken")
		}
		if i := len(raw) % len(good); !bytes.HasPrefix(raw, good) {
			mixed := append(bytes.Clone(good[:i]), raw...)
			if _, err := v.Grants(bytes.NewReader(mixed), Floor{}); err == nil && !bytes.Equal(mixed, good) && !bytes.Equal(append(mixed, '\n'), good) {
				t.Error("a list that nobody signed was taken")
			}
		}
	})
}
