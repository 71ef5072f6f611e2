package policy

import (
	"fmt"
	"math/rand"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

var epoch = time.Date(2026, 11, 18, 4, 0, 0, 0, time.UTC) // a Wednesday

var pool = map[string][]string{
	"ipallow": {"10.0.0.0/8", "192.0.2.0/24,2001:db8::/32", "0.0.0.0/0,::/0"},
	"ipdeny":  {"10.1.0.0/16", "2001:db8:1::/48", "198.51.100.0/24"},
	"time":    {"1-5 0800-2000 +08", "3-3 0000-1000 +00", "1-7 0000-2400 +00"},
	"posture": {">=80", ">=20"},
	"risk":    {"<=60", "<=10"},
	"level":   {"1", "3"},
	"mfa":     {"1", "1,4"},
	"authage": {"15m", "8h"},
	"tls":     {"tlcp", "tls1.3,tlcp"},
	"app":     {"GET /api/*", "* /*", "POST /api/v1/*"},
	"rate":    {"100/s", "0/s"},
	"maxconn": {"20", "0"},
}

var poolTypes = []string{"ipallow", "ipdeny", "time", "posture", "risk", "level", "mfa", "authage", "tls", "app", "rate", "maxconn"}

func pick[T any](t *rapid.T, name string, from ...T) T { return rapid.SampledFrom(from).Draw(t, name) }

func genPolicies(t *rapid.T, most int) []wire.Policy {
	var out []wire.Policy
	n := rapid.IntRange(0, most).Draw(t, "policies")
	for i := range n {
		typ := pick(t, "type", poolTypes...)
		p := wire.Policy{PolicyID: fmt.Sprintf("POL%08d", i), PolicyName: "p", PolicyType: typ, PolicyData: pick(t, "data", pool[typ]...)}
		out = append(out, p)
		if rapid.Bool().Draw(t, "bound") {
			out = append(out, bindRow(t, i, p.PolicyID))
		}
	}
	return out
}

func bindRow(t *rapid.T, i int, policyID string) wire.Policy {
	scopes := pick(t, "scope", "*", "APP00000001", "APP00000002", "USR00000001/*", "USR00000001/APP00000001", "USR00000002/APP00000001", "APP00000001,APP00000002")
	return wire.Policy{PolicyID: fmt.Sprintf("BND%08d", i), PolicyType: "bind", PolicyData: policyID + " " + scopes}
}

func genScore(t *rapid.T, name string) Score { return ScoreOf(pick(t, name, 90, -1, 5, 50, 90)) }

func genInput(t *rapid.T) Input {
	in := Input{Key: testKey, Version: 1, Policies: genPolicies(t, 4), Ceiling: genPolicies(t, 1)}
	for i := range 3 {
		in.Apps = append(in.Apps, App{ID: fmt.Sprintf("APP%08d", i), Level: pick(t, "floor", 0, 0, 0, 2), RefuseBrowser: pick(t, "refuse", false, false, true)})
	}
	for u := range 3 {
		for d, device := range []string{"DEV00000001", "DEV00000002", BrowserDevice} {
			if pick(t, "row", true, true, true, false) {
				r := Row{Grant: wire.Grant{UserID: fmt.Sprintf("USR%08d", u), DeviceID: device, AuthenticationToken: fmt.Sprintf("TOKEN%d%d", u, d),
					ExpirationDate: epoch.Add(pick(t, "ttl", 24*time.Hour, time.Minute, 24*time.Hour, 0, 24*time.Hour, -time.Second)).Format(time.RFC3339)}}
				r.AppIDList = pick(t, "apps", []string{"APP00000001"}, nil, []string{}, []string{"APP00000001", "APP00000002"}, []string{"APP00000002", "APP00000001", "APP00000000"}, []string{"APP00000009", "APP00000001"})
				r.Level, r.Posture, r.Risk = pick(t, "level", 0, 1, 3), genScore(t, "posture"), genScore(t, "risk")
				r.Factors = pick(t, "factors", 0, FactorsOf(1), FactorsOf(1, 4))
				r.AuthTime = pick(t, "auth", time.Time{}, epoch.Add(-time.Minute), epoch.Add(-time.Hour))
				in.Grants = append(in.Grants, r)
			}
		}
	}
	for range rapid.IntRange(0, 2).Draw(t, "locks") {
		in.Locks = append(in.Locks, Lock{Kind: pick(t, "kind", "user", "device", "agent", "app", "session"),
			ID: pick(t, "id", "nobody", "nobody", "USR00000001", "DEV00000001", BrowserDevice, "AGT00000001", "APP00000001", "S1", "nobody"), Until: pick(t, "until", epoch, time.Time{}, epoch.Add(time.Minute))})
	}
	if pick(t, "notAfter", false, false, true) {
		in.NotAfter = epoch.Add(pick(t, "end", time.Hour, time.Second, 0))
	}
	return in
}

func genFacts(t *rapid.T) Facts {
	f := Facts{SessionID: "S1", UserID: pick(t, "user", "USR00000001", "USR00000001", "USR00000000", "USR00000001", "USR00000002", ""), AgentID: "AGT00000001",
		Level: pick(t, "slevel", 0, 1, 3), Factors: pick(t, "sfactors", 0, FactorsOf(1), FactorsOf(4, 1)), Posture: genScore(t, "sposture"), Risk: genScore(t, "srisk"),
		AuthTime: pick(t, "sauth", time.Time{}, epoch.Add(-14*time.Minute), epoch.Add(30*time.Second), epoch.Add(2*time.Minute))}
	if rapid.Bool().Draw(t, "browser") {
		f.Browser = true
	} else {
		f.DeviceID = pick(t, "device", "DEV00000001", "DEV00000001", "DEV00000002", BrowserDevice, "")
		f.Token = pick(t, "token", "", "", "TOKEN10", "TOKEN11", "TOKEN20", "TOKEN12", "nosuch")
	}
	return f
}

func genRequest(t *rapid.T) Request {
	r := Request{Remote: pick(t, "remote", netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8:1::1"), netip.Addr{}),
		Protocol: pick(t, "protocol", Unknown, TLS12, TLS13, TLCP)}
	if rapid.Bool().Draw(t, "http") {
		r.Method, r.Path = pick(t, "method", "GET", "POST"), pick(t, "path", "/", "/api/x", "/api/v1/y")
	}
	return r
}

var testKey = NewTokenKey()

var testApps = []string{"APP00000000", "APP00000001", "APP00000002", "APP00000009", "", "nosuch"}

func verdict(s *Snapshot, f Facts, app string, r Request, now time.Time) Decision {
	return s.Decide(testKey.Subject(f), s.App(app), &r, now)
}

func TestCompiledEqualsNaiveInterpreter(t *testing.T) {
	allowed := 0
	rapid.Check(t, func(t *rapid.T) {
		in := genInput(t)
		s, faults := Build(in)
		if len(faults) != 0 {
			t.Fatalf("faults of a valid list: %v", faults)
		}
		for range 16 {
			f, r := genFacts(t), genRequest(t)
			app := pick(t, "app", "APP00000001", "APP00000001", "APP00000002", "APP00000000", "APP00000009", "", "nosuch")
			now := epoch.Add(pick(t, "now", 0, time.Nanosecond, 30*time.Second, 2*time.Hour, 17*time.Hour))
			d := verdict(s, f, app, r, now)
			if want := naive(in, f, app, r, now); (d.Reason == reason.OK) != want {
				t.Fatalf("compiled says %v %s, naive says %v\n%s", d.Reason, d.PolicyID, want, s.Explain(f, app, r, now))
			}
			if got := s.Explain(f, app, r, now); got.Decision != d {
				t.Fatalf("explain says %+v, decide %+v", got.Decision, d)
			}
			if d.Reason != reason.OK {
				continue
			}
			allowed++
			// The right holds until RecheckAt at least.
			end := d.RecheckAt
			if end.IsZero() {
				end = now.Add(100 * 24 * time.Hour)
			}
			if !end.After(now) {
				t.Fatalf("to be looked at again at %v, which is not after %v", end, now)
			}
			for range 4 {
				at := now.Add(time.Duration(rapid.Int64Range(0, int64(end.Sub(now))-1).Draw(t, "later")))
				if !naive(in, f, app, r, at) {
					t.Fatalf("the right ends at %v or before, but was to be looked at again at %v only", at, end)
				}
			}
		}
	})
	t.Logf("%d decisions allowed", allowed)
	if allowed < 50 {
		t.Errorf("only %d decisions allowed anything: the generator is too narrow to prove much", allowed)
	}
}

// question of every kind, so that two snapshots can be compared.
func sweep(t *rapid.T, n int) (fs []Facts, rs []Request) {
	for range n {
		fs, rs = append(fs, genFacts(t)), append(rs, genRequest(t))
	}
	return fs, rs
}

func TestOrderOfRowsNeverMatters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := genInput(t)
		breakRows(t, &in)
		a, faultsA := Build(in)
		rnd := rand.New(rand.NewSource(rapid.Int64().Draw(t, "seed")))
		for _, swap := range []struct {
			n int
			f func(i, j int)
		}{
			{len(in.Grants), func(i, j int) { in.Grants[i], in.Grants[j] = in.Grants[j], in.Grants[i] }},
			{len(in.Policies), func(i, j int) { in.Policies[i], in.Policies[j] = in.Policies[j], in.Policies[i] }},
			{len(in.Ceiling), func(i, j int) { in.Ceiling[i], in.Ceiling[j] = in.Ceiling[j], in.Ceiling[i] }},
			{len(in.Locks), func(i, j int) { in.Locks[i], in.Locks[j] = in.Locks[j], in.Locks[i] }},
			{len(in.Apps), func(i, j int) { in.Apps[i], in.Apps[j] = in.Apps[j], in.Apps[i] }},
		} {
			rnd.Shuffle(swap.n, swap.f)
		}
		b, faultsB := Build(in)
		if len(faultsA) != len(faultsB) {
			t.Fatalf("%d faults in one order, %d in the other", len(faultsA), len(faultsB))
		}
		fs, rs := sweep(t, 8)
		for i := range fs {
			for _, app := range testApps {
				if x, y := verdict(a, fs[i], app, rs[i], epoch), verdict(b, fs[i], app, rs[i], epoch); x != y {
					t.Fatalf("%s: %+v in one order, %+v in the other", app, x, y)
				}
			}
		}
	})
}

// breakRows adds faults of every kind.
func breakRows(t *rapid.T, in *Input) {
	bad := []wire.Policy{
		{PolicyID: "POLX", PolicyType: "nosuch", PolicyData: "x"},
		{PolicyID: "POLX", PolicyType: "ipallow", PolicyData: "x"},
		{PolicyID: "POL00000001", PolicyType: "level", PolicyData: "1"}, // an id that may be taken
		{PolicyID: "BNDX", PolicyType: "bind", PolicyData: "POL00000000 APP00000002"},
		{PolicyID: "BNDX", PolicyType: "bind", PolicyData: "POL00000000 ?/"},
		{PolicyID: "BNDY", PolicyType: "bind", PolicyData: "POLGONE APP00000001"},
		{PolicyID: "POLG", PolicyType: "geo", PolicyData: "1,2,3km"},
	}
	for _, p := range bad {
		if rapid.Bool().Draw(t, "bad") {
			in.Policies = append(in.Policies, p)
		}
	}
	if len(in.Grants) > 0 && rapid.Bool().Draw(t, "twice") {
		g := in.Grants[0]
		g.ExpirationDate = epoch.Add(48 * time.Hour).Format(time.RFC3339)
		in.Grants = append(in.Grants, g)
	}
	if len(in.Grants) > 1 && rapid.Bool().Draw(t, "token") {
		in.Grants[1].AuthenticationToken = in.Grants[0].AuthenticationToken
	}
}

func TestAddedRowsNeverWiden(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := genInput(t)
		before, _ := Build(in)
		kind := pick(t, "kind", "policy", "lock", "unreadable", "ceiling", "bad", "second bind")
		what := ""
		switch kind {
		case "policy", "ceiling":
			list := &in.Policies
			if kind == "ceiling" {
				list = &in.Ceiling
			}
			typ := pick(t, "newtype", poolTypes...)
			p := wire.Policy{PolicyID: "POLNEW", PolicyType: typ, PolicyData: pick(t, "newdata", pool[typ]...)}
			*list = append(*list, p) // unbound: stands alone
			what = typ + " " + p.PolicyData
			if rapid.Bool().Draw(t, "scoped") {
				// Bound: it may be an alternative only of its own type.
				if slices.ContainsFunc(*list, func(o wire.Policy) bool { return o.PolicyType == typ && o.PolicyID != "POLNEW" }) && typ != "ipdeny" {
					t.Skip("an alternative of the same type")
				}
				*list = append(*list, wire.Policy{PolicyID: "BNDNEW", PolicyType: "bind", PolicyData: "POLNEW APP00000001"})
			}
		case "lock":
			in.Locks = append(in.Locks, Lock{Kind: "user", ID: "USR00000001"})
		case "unreadable":
			in.Policies = append(in.Policies, wire.Policy{PolicyID: "POLNEW", PolicyType: "nosuch"})
		case "bad":
			in.BadPolicies = append(in.BadPolicies, BadRow{PolicyID: pick(t, "badid", "", "POL00000000")})
		case "second bind":
			if len(in.Policies) == 0 {
				t.Skip("no policy")
			}
			if i := slices.IndexFunc(in.Policies, func(p wire.Policy) bool { return p.PolicyType == "bind" }); i >= 0 {
				target := in.Policies[i].PolicyData[:11]
				in.Policies = append(in.Policies, wire.Policy{PolicyID: "BNDNEW", PolicyType: "bind", PolicyData: target + " USR00000002/*"})
			}
		}
		after, _ := Build(in)
		noneWider(t, before, after, "adding a row of kind "+kind+" "+what)
	})
}

func TestLostBindRowCanOnlyNarrow(t *testing.T) {
	lost := 0
	rapid.Check(t, func(t *rapid.T) {
		in := genInput(t)
		before, _ := Build(in)
		i := slices.IndexFunc(in.Policies, func(p wire.Policy) bool { return p.PolicyType == "bind" })
		if i < 0 {
			return
		}
		lost++
		if rapid.Bool().Draw(t, "damaged") {
			in.Policies = slices.Clone(in.Policies)
			in.Policies[i].PolicyData = pick(t, "damage", in.Policies[i].PolicyData[:11], in.Policies[i].PolicyData+"//", "?", "")
		} else {
			in.Policies = slices.Delete(slices.Clone(in.Policies), i, i+1)
		}
		after, _ := Build(in)
		noneWider(t, before, after, "the loss of a bind row")
	})
	if lost < 20 {
		t.Errorf("only %d lists had a bind row", lost)
	}
}

func noneWider(t *rapid.T, before, after *Snapshot, what string) {
	t.Helper()
	fs, rs := sweep(t, 12)
	for i := range fs {
		for _, app := range testApps {
			if verdict(before, fs[i], app, rs[i], epoch).Reason != reason.OK && verdict(after, fs[i], app, rs[i], epoch).Reason == reason.OK {
				t.Fatalf("%s opened %s:\nbefore %s\nafter %s", what, app, before.Explain(fs[i], app, rs[i], epoch), after.Explain(fs[i], app, rs[i], epoch))
			}
		}
	}
}

func TestDeltaEqualsFullList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := genInput(t)
		s, _ := Build(in)
		first := s
		want := map[[2]string]Row{}
		for _, r := range in.Grants {
			want[[2]string{r.UserID, r.DeviceID}] = r
		}
		for step := range rapid.IntRange(1, 6).Draw(t, "steps") {
			b := s.Edit()
			u, d := fmt.Sprintf("USR%08d", rapid.IntRange(0, 3).Draw(t, "u")), pick(t, "d", "DEV00000001", "DEV00000002", BrowserDevice)
			if rapid.Bool().Draw(t, "remove") {
				b.Remove(u, d)
				delete(want, [2]string{u, d})
			} else {
				r := Row{Grant: wire.Grant{UserID: u, DeviceID: d, AuthenticationToken: fmt.Sprintf("NEW%d", step), ExpirationDate: epoch.Add(time.Hour).Format(time.RFC3339),
					AppIDList: pick(t, "apps", nil, []string{"APP00000001"}, []string{"APP00000077", "APP00000002"})}}
				b.Put(r)
				want[[2]string{u, d}] = r
			}
			s, _ = b.Finish()
		}
		full := in
		full.Grants = nil
		for _, r := range want {
			full.Grants = append(full.Grants, r)
		}
		f, _ := Build(full)
		if d := Diff(s, f); len(d) != 0 {
			t.Fatalf("the deltas' snapshot differs from the full list's: %v", d)
		}
		orig, _ := Build(in)
		if d := Diff(first, orig); len(d) != 0 {
			t.Fatalf("the deltas changed the snapshot that they started from: %v", d)
		}
		facts, rs := sweep(t, 6)
		for i := range facts {
			for _, app := range testApps {
				if x, y := verdict(s, facts[i], app, rs[i], epoch), verdict(f, facts[i], app, rs[i], epoch); x != y {
					t.Fatalf("%s: %+v by deltas, %+v by the full list", app, x, y)
				}
			}
		}
	})
}
