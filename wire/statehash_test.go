package wire

import (
	"math/rand/v2"
	"testing"
)

func TestSumOfASetDoesNotDependOnTheWay(t *testing.T) {
	rows := make([]Sum, 500)
	for i := range rows {
		rows[i] = RowSum(digestOf("row", string(rune('a'+i))))
	}
	var want, got Sum
	for _, r := range rows {
		want = want.Add(r)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, i := range r.Perm(len(rows)) { // another order, each put in, out and in again
		got = got.Add(rows[i]).Sub(rows[i]).Add(rows[i])
	}
	if got != want || len(got.String()) != 32 {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, x := range rows {
		got = got.Sub(x)
	}
	if got != (Sum{}) {
		t.Errorf("nothing is left, and the sum is %v", got)
	}
}

func TestGrantDigestTellsEveryFieldApart(t *testing.T) {
	n := func(v int) *int { return &v }
	base := func() (*Grant, *RowFacts) {
		return &Grant{UserID: "USR00000001", DeviceID: "DEV00000001", AuthenticationToken: "tok", ExpirationDate: "2099-01-01T00:00:00Z", AppIDList: []string{"A", "B"}},
			&RowFacts{I: 3, Level: 2, Factors: []int{1, 4}, AuthTime: "2026-01-02T03:04:05Z", Posture: n(90), Risk: n(0)}
	}
	seen := map[[32]byte]string{}
	for name, change := range map[string]func(*Grant, *RowFacts){
		"none":    func(*Grant, *RowFacts) {},
		"user":    func(g *Grant, _ *RowFacts) { g.UserID = "USR00000002" },
		"device":  func(g *Grant, _ *RowFacts) { g.DeviceID = "DEV00000002" },
		"token":   func(g *Grant, _ *RowFacts) { g.AuthenticationToken = "tik" },
		"end":     func(g *Grant, _ *RowFacts) { g.ExpirationDate = "2098-01-01T00:00:00Z" },
		"apps":    func(g *Grant, _ *RowFacts) { g.AppIDList = []string{"A"} },
		"joined":  func(g *Grant, _ *RowFacts) { g.AppIDList = []string{"AB"} },
		"level":   func(_ *Grant, f *RowFacts) { f.Level = 3 },
		"factors": func(_ *Grant, f *RowFacts) { f.Factors = []int{14} },
		"signin":  func(_ *Grant, f *RowFacts) { f.AuthTime = "" },
		"posture": func(_ *Grant, f *RowFacts) { f.Posture = nil },
		"risk":    func(_ *Grant, f *RowFacts) { f.Risk = nil },
	} {
		g, f := base()
		change(g, f)
		s := GrantDigest(g, f)
		if other, ok := seen[s]; ok {
			t.Errorf("%s and %s have the same sum", name, other)
		}
		seen[s] = name
	}
	g, f := base()
	a := GrantDigest(g, f)
	f.I = 9 // where the row stands in its page is not what it says
	if GrantDigest(g, f) != a {
		t.Error("the index counts")
	}
}

func BenchmarkGrantDigest(b *testing.B) {
	g := &Grant{UserID: "USR00000001", DeviceID: "DEV00000001", AuthenticationToken: "0123456789a", ExpirationDate: "2099-01-01T00:00:00Z", AppIDList: []string{"APP00000001", "APP00000002"}}
	b.ReportAllocs()
	for b.Loop() {
		GrantDigest(g, nil)
	}
}
