package alert

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

func TestGCR002_M68_EveryClassHasTriggersAndTexts(t *testing.T) {
	class := map[byte]int{}
	for _, e := range Catalogue() {
		if !regexp.MustCompile(`^[123]\.[0-9]{3}$`).MatchString(string(e.Code)) {
			t.Errorf("code %q: digits and a dot only (Table 11)", e.Code)
		}
		class[e.Code[0]]++
		if e.Level < Normal || e.Level > Severe {
			t.Errorf("%s: level %d", e.Code, e.Level)
		}
		if e.EN == "" || e.ZH == "" || e.AdviceEN == "" || e.AdviceZH == "" {
			t.Errorf("%s: a text is missing", e.Code)
		}
	}
	if len(class) != 3 || len(byCode) != len(catalogue) {
		t.Errorf("classes %v, %d codes in %d lines", class, len(byCode), len(catalogue))
	}
}

func TestGCR002_M70_ContentHasSixParts(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for _, e := range Catalogue() {
		a := Alert{Code: e.Code, Time: at, Reason: reason.GrantRevoked, UserID: "USR00000001"}
		for l, texts := range map[reason.Lang][]string{
			reason.English: {"DEV00000001", "2026-03-04T05:06:07Z", string(e.Code), e.EN, e.AdviceEN, "USR00000001"},
			reason.Chinese: {"DEV00000001", "2026-03-04T05:06:07Z", string(e.Code), e.ZH, e.AdviceZH, "YM-304"},
		} {
			got := a.Content(l, "DEV00000001")
			for _, want := range texts {
				if !strings.Contains(got, want) {
					t.Errorf("%s: content %q lacks %q", e.Code, got, want)
				}
			}
		}
	}
}

func TestGCR002_M69_DampedButNeverSilent(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var got []Alert
	d := NewDamper(Func(func(a Alert) { got = append(got, a) }), time.Minute, func() time.Time { return now })
	total := func() (n int) {
		for _, a := range got {
			n += 1 + a.Repeats
		}
		return n
	}
	for range 100 {
		d.Raise(Alert{Code: AppDown, AppID: "APP00000001"})
	}
	d.Raise(Alert{Code: AppDown, AppID: "APP00000002"})
	if len(got) != 2 {
		t.Fatalf("%d alerts passed at once, want 2: one a key", len(got))
	}
	if got[0].Level != Warning {
		t.Errorf("level %d, want the catalogue's %d", got[0].Level, Warning)
	}
	now = now.Add(time.Minute)
	d.Flush()
	if len(got) != 3 || total() != 101 {
		t.Errorf("after the interval: %d alerts that stand for %d, want 3 for 101", len(got), total())
	}
	now = now.Add(time.Minute)
	d.Flush()
	if len(d.seen) != 0 {
		t.Errorf("%d quiet keys are still held", len(d.seen))
	}
}

// A clock that is set back makes nothing young again.
func TestGCR002_M69_R17_AStepBackSilencesNothing(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	n := 0
	d := NewDamper(Func(func(a Alert) { n += 1 + a.Repeats }), time.Minute, func() time.Time { return now })
	d.Raise(Alert{Code: AppDown})
	d.Raise(Alert{Code: AppDown})
	now = now.Add(-time.Hour)
	d.Flush()
	now = now.Add(time.Second)
	d.Raise(Alert{Code: AppDown})
	now = now.Add(2 * time.Minute)
	d.Flush()
	if n != 3 {
		t.Errorf("alerts for %d came through within 2 minutes after an hour back, want 3", n)
	}
}

// A flood from ever new addresses must not drown what else is raised.
func TestGCR002_M69_AFloodOfNewKeysIsDamped(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var got []Alert
	d := NewDamper(Func(func(a Alert) { got = append(got, a) }), time.Minute, func() time.Time { return now })
	const flood = 3 * maxDampKeys
	for i := range flood {
		d.Raise(Alert{Code: ConnectionFlood, Remote: fmt.Sprint(i)})
	}
	if len(got) > maxDampKeys+1 {
		t.Errorf("%d alerts passed at once, want at most %d", len(got), maxDampKeys+1)
	}
	d.Raise(Alert{Code: TokenMisuse, DeviceID: "DEV00000001"})
	if last := got[len(got)-1]; last.Code != TokenMisuse {
		t.Errorf("another code was held back: the last is %s", last.Code)
	}
	now = now.Add(time.Minute)
	d.Flush()
	total := 0
	for _, a := range got {
		total += 1 + a.Repeats
	}
	if total != flood+1 {
		t.Errorf("the alerts stand for %d, want %d", total, flood+1)
	}
}
